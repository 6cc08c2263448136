/* Batch norm, sums over rows, and the gradient of an activation. The formulas are in
   engine/batch_norm.py; here are the four passes over all values, which lie in memory as rows of
   channels, (R, M, C).

   A float32 sum of all rows would be wrong in its sixth digit. So at most SHORT rows are added
   up in `real`, and these sums in double. */

#define SHORT 32

struct rows {
    int64_t sources, replicas, rows, channels; /* sources: 1 where all replicas see the same x */
    int64_t parts;                             /* into which the rows are cut */
    int64_t activation, with_moments;
};

struct rows_job {
    const struct rows *shape;
    const real *x, *g;
    const real *factor, *offset, *center, *slope, *constant; /* the same for all rows, (R, C) */
    double *sums, *more;    /* (parts, R, C) */
    real *result;
    int64_t backwards;
};

/* The rows first … last−1 of a replica: what a tile is. */
struct part {
    int64_t number, replica, first, last;
    int64_t x, y; /* where these rows begin in x, of `sources` replicas, and in y, of all */
};

static struct part part_of(const struct rows *s, int64_t tile) {
    struct part p = {.number = tile / s->replicas, .replica = tile % s->replicas};
    p.first = p.number * s->rows / s->parts;
    p.last = (p.number + 1) * s->rows / s->parts;
    p.x = ((s->sources == 1 ? 0 : p.replica) * s->rows + p.first) * s->channels;
    p.y = (p.replica * s->rows + p.first) * s->channels;
    return p;
}

/* sums[c] += Σ x[m, c] over `count` rows; with `mean`, Σ (x[m, c] − mean[c])². `few` has room for
   the sums of SHORT rows. */
static inline __attribute__((always_inline)) void add_rows_of(
    const real *x, int64_t count, int64_t channels, const real *mean, double *sums, real *few) {
    for (int64_t start = 0; start < count; start += SHORT) {
        int64_t rows = least(SHORT, count - start), m = 0;
        memset(few, 0, channels * sizeof *few);
        const real *from = x + start * channels;
        /* Row after row, as they lie in memory; four at a time. */
        for (; m + 4 <= rows; m += 4, from += 4 * channels) {
            int64_t c = 0;
            for (; c + VL <= channels; c += VL) {
                vec sum = load(few + c), center = mean ? load(mean + c) : (vec){0};
                for (int k = 0; k < 4; k++) {
                    vec value = load(from + k * channels + c);
                    if (mean) {
                        value -= center;
                        value *= value;
                    }
                    sum += value;
                }
                store(few + c, sum);
            }
            for (; c < channels; c++)
                for (int k = 0; k < 4; k++) {
                    real value = from[k * channels + c] - (mean ? mean[c] : 0);
                    few[c] += mean ? value * value : value;
                }
        }
        for (; m < rows; m++, from += channels)
            for (int64_t c = 0; c < channels; c++) {
                real value = from[c] - (mean ? mean[c] : 0);
                few[c] += mean ? value * value : value;
            }
        for (int64_t c = 0; c < channels; c++) sums[c] += few[c];
    }
}

static void add_rows(const real *x, int64_t count, int64_t channels, const real *mean,
                     double *sums, real *few) {
    if (mean)
        add_rows_of(x, count, channels, mean, sums, few);
    else
        add_rows_of(x, count, channels, NULL, sums, few);
}

/* mean = Σ x / M, squares = Σ (x − mean)², of the rows of one part. */
static void moments_tile(const void *job, int64_t tile, char *scratch) {
    const struct rows_job *own = job;
    int64_t channels = own->shape->channels;
    struct part p = part_of(own->shape, tile);
    double *mean = own->sums + tile * channels, *squares = own->more + tile * channels;
    real *center = (real *)scratch, *few = center + channels;
    memset(mean, 0, channels * sizeof *mean);
    memset(squares, 0, channels * sizeof *squares);
    add_rows(own->x + p.x, p.last - p.first, channels, NULL, mean, few);
    for (int64_t c = 0; c < channels; c++)
        center[c] = mean[c] /= p.last - p.first;
    add_rows(own->x + p.x, p.last - p.first, channels, center, squares, few);
}

EXPORT int norm_moments(const real *x, const struct rows *shape, double *means, double *squares,
                        int64_t threads) {
    struct rows_job job = {.shape = shape, .x = x, .sums = means, .more = squares};
    return run_tiles(moments_tile, &job, shape->parts * shape->replicas,
                     2 * shape->channels * sizeof(real), threads);
}

/* y = f( factor · x + offset ) */
static void normalize_tile(const void *job, int64_t tile, char *scratch) {
    const struct rows_job *own = job;
    const struct rows *s = own->shape;
    if (own->backwards)
        tile = s->parts * s->replicas - 1 - tile;
    struct part p = part_of(s, tile);
    const real *factor = own->factor + p.replica * s->channels;
    const real *offset = own->offset + p.replica * s->channels;
    const real *x = own->x + p.x;
    real *y = own->result + p.y;
    const int far = lies_far(own->result, s->replicas * s->rows, s->channels);
    for (int64_t m = p.first; m < p.last; m++, x += s->channels, y += s->channels) {
        int64_t c = 0;
        for (; c + VL <= s->channels; c += VL) {
            vec a = load(factor + c) * load(x + c) + load(offset + c);
            (far ? store_far : store)(y + c, activated_vec(a, s->activation));
        }
        for (; c < s->channels; c++)
            y[c] = activated(factor[c] * x[c] + offset[c], s->activation);
    }
}

EXPORT int normalize(const real *x, const real *factor, const real *offset,
                     const struct rows *shape, int64_t backwards, real *y, int64_t threads) {
    struct rows_job job = {.shape = shape, .x = x, .factor = factor, .offset = offset,
                           .result = y, .backwards = backwards};
    return run_tiles(normalize_tile, &job, shape->parts * shape->replicas, 0, threads);
}

/* g' = g where f is steep at a = factor · x + offset, and 0 · g where it is flat: of NaN and
   infinity that is NaN. To compute a again is cheaper than to read y = f(a). */
static inline real passed(real g, real a, int64_t activation) {
    if (activation != LINEAR)
        g *= a > 0 && (activation == RELU || a < 6);
    return g;
}

static inline vec passed_vec(vec g, vec a, int64_t activation) {
    if (activation != LINEAR) {
        vec_mask through = a > 0;
        if (activation == RELU6)
            through &= a < 6;
        g *= chosen(through, spread(1), (vec){0});
    }
    return g;
}

/* Σ g' and Σ g' · (x − center), of the rows of one part. */
static void norm_sums_tile(const void *job, int64_t tile, char *scratch) {
    const struct rows_job *own = job;
    const struct rows *s = own->shape;
    struct part p = part_of(s, tile);
    int64_t channels = s->channels, activation = s->activation;
    const real *center = own->center + p.replica * channels;
    const real *factor = own->factor + p.replica * channels;
    const real *offset = own->offset + p.replica * channels;
    double *sums = own->sums + tile * channels, *products = own->more + tile * channels;
    memset(sums, 0, channels * sizeof *sums);
    memset(products, 0, channels * sizeof *products);
    real *few = (real *)scratch, *few_products = few + channels;
    const real *x = own->x + p.x, *g = own->g + p.y;
    for (int64_t start = p.first; start < p.last; start += SHORT) {
        int64_t rows = least(SHORT, p.last - start), m = 0;
        memset(few, 0, 2 * channels * sizeof *few);
        while (m < rows) { /* row after row, as they lie in memory; four at a time */
            int64_t some = m + 4 <= rows ? 4 : 1, c = 0;
            for (; c + VL <= channels; c += VL) {
                vec sum = load(few + c), product = load(few_products + c);
                vec middle = load(center + c), slope = load(factor + c), start = load(offset + c);
                for (int64_t k = c; k < some * channels; k += channels) {
                    vec own_x = load(x + k);
                    vec own_g = passed_vec(load(g + k), slope * own_x + start, activation);
                    sum += own_g;
                    product += own_g * (own_x - middle);
                }
                store(few + c, sum);
                store(few_products + c, product);
            }
            for (; c < channels; c++)
                for (int64_t k = c; k < some * channels; k += channels) {
                    real own_g = passed(g[k], factor[c] * x[k] + offset[c], activation);
                    few[c] += own_g;
                    few_products[c] += own_g * (x[k] - center[c]);
                }
            m += some;
            x += some * channels, g += some * channels;
        }
        for (int64_t c = 0; c < channels; c++) {
            sums[c] += few[c];
            products[c] += few_products[c];
        }
    }
}

EXPORT int norm_sums(const real *g, const real *x, const real *center, const real *factor,
                     const real *offset, const struct rows *shape, double *sums, double *products,
                     int64_t threads) {
    struct rows_job job = {.shape = shape, .x = x, .g = g, .center = center, .factor = factor,
                           .offset = offset, .sums = sums, .more = products};
    return run_tiles(norm_sums_tile, &job, shape->parts * shape->replicas,
                     2 * shape->channels * sizeof(real), threads);
}

/* ∂x = factor · g', and slope · x + constant if the moments are the batch's own. */
static void norm_gradient_tile(const void *job, int64_t tile, char *scratch) {
    const struct rows_job *own = job;
    const struct rows *s = own->shape;
    /* Backwards: what norm_sums read last is still in the cache. */
    struct part p = part_of(s, s->parts * s->replicas - 1 - tile);
    int64_t channels = s->channels;
    const real *factor = own->factor + p.replica * channels;
    const real *offset = own->offset + p.replica * channels;
    const real *slope = own->slope + p.replica * channels;
    const real *constant = own->constant + p.replica * channels;
    const real *x = own->x + p.x, *g = own->g + p.y;
    real *result = own->result + p.y;
    const int far = lies_far(own->result, s->replicas * s->rows, channels);
    for (int64_t m = p.first; m < p.last; m++) {
        int64_t c = 0;
        for (; c + VL <= channels; c += VL) {
            vec own_x = load(x + c), a = load(factor + c) * own_x + load(offset + c);
            vec sum = load(factor + c) * passed_vec(load(g + c), a, s->activation);
            if (s->with_moments)
                sum += load(slope + c) * own_x + load(constant + c);
            (far ? store_far : store)(result + c, sum);
        }
        for (; c < channels; c++) {
            result[c] = factor[c] * passed(g[c], factor[c] * x[c] + offset[c], s->activation);
            if (s->with_moments)
                result[c] += slope[c] * x[c] + constant[c];
        }
        x += channels, g += channels, result += channels;
    }
}

EXPORT int norm_gradient(const real *g, const real *x, const real *factor, const real *offset,
                         const real *slope, const real *constant, const struct rows *shape,
                         real *x_gradient, int64_t threads) {
    struct rows_job job = {.shape = shape, .x = x, .g = g, .factor = factor, .offset = offset,
                           .slope = slope, .constant = constant, .result = x_gradient};
    return run_tiles(norm_gradient_tile, &job, shape->parts * shape->replicas, 0, threads);
}

/* --- the gradient of an activation ----------------------------------------------------------- */

#define ACTIVATION_BLOCK ((int64_t)1 << 14) /* numbers in a tile */

struct activation_job {
    const real *g, *y;
    real *result;
    int64_t size, activation;
};

static void activation_tile(const void *job, int64_t tile, char *scratch) {
    const struct activation_job *own = job;
    int64_t k = tile * ACTIVATION_BLOCK, last = least(k + ACTIVATION_BLOCK, own->size);
    (void)scratch;
    for (; k + VL <= last; k += VL)
        store(own->result + k, passed_vec(load(own->g + k), load(own->y + k), own->activation));
    for (; k < last; k++) own->result[k] = passed(own->g[k], own->y[k], own->activation);
}

/* g · f'(a), where y = f(a) says as well as a does where f is steep */
EXPORT int activate_gradient(const real *g, const real *y, int64_t size, int64_t activation,
                             real *result, int64_t threads) {
    struct activation_job job = {g, y, result, size, activation};
    return run_tiles(activation_tile, &job, divide_up(size, ACTIVATION_BLOCK), 0, threads);
}

/* --- sums over rows: (R, M, C) → (R, C) ---------------------------------------------------- */

static void sum_rows_tile(const void *job, int64_t tile, char *scratch) {
    const struct rows_job *own = job;
    struct part p = part_of(own->shape, tile);
    double *sums = own->sums + tile * own->shape->channels;
    memset(sums, 0, own->shape->channels * sizeof *sums);
    add_rows(own->x + p.y, p.last - p.first, own->shape->channels, NULL, sums,
             (real *)scratch);
}

/* partial   (parts, R, C), for intermediate results */
EXPORT int sum_rows(const real *x, const struct rows *shape, double *partial, real *result,
                    int64_t threads) {
    struct rows_job job = {.shape = shape, .x = x, .sums = partial};
    int64_t size = shape->replicas * shape->channels;
    if (run_tiles(sum_rows_tile, &job, shape->parts * shape->replicas,
                  shape->channels * sizeof(real), threads))
        return -1;
    for (int64_t k = 0; k < size; k++) {
        double sum = 0;
        for (int64_t part = 0; part < shape->parts; part++)
            sum += partial[part * size + k];
        result[k] = sum;
    }
    return 0;
}
