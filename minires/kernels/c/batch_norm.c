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

static int64_t rows_of_part(const struct rows *s, int64_t part) {
    return (part + 1) * s->rows / s->parts - part * s->rows / s->parts;
}

static struct part part_of(const struct rows *s, int64_t tile) {
    struct part p = {.number = tile / s->replicas, .replica = tile % s->replicas};
    p.first = p.number * s->rows / s->parts;
    p.last = p.first + rows_of_part(s, p.number);
    p.x = ((s->sources == 1 ? 0 : p.replica) * s->rows + p.first) * s->channels;
    p.y = (p.replica * s->rows + p.first) * s->channels;
    return p;
}

/* sums[c] += Σ x[m, c] over `count` rows. `few`, for the sums of SHORT rows, has whole vectors. */
static void add_rows(const real *x, int64_t count, int64_t channels, double *sums, real *few) {
    for (int64_t start = 0; start < count; start += SHORT) {
        int64_t rows = least(SHORT, count - start);
        memset(few, 0, round_up(channels, VL) * sizeof *few);
        for (int64_t m = 0; m < rows; m++, x += channels)
            EACH_VECTOR(c, some, channels, store(few + c, load(few + c) + load_some(x + c, some)));
        for (int64_t c = 0; c < channels; c++) sums[c] += few[c];
    }
}

/* mean = Σ x / M, then squares = Σ (x − mean)², of the rows of one part: it is still in the cache
   when it is read again. */
static void moments_tile(const void *job, int64_t tile, char *scratch) {
    const struct rows_job *own = job;
    int64_t channels = own->shape->channels, width = round_up(channels, VL);
    struct part p = part_of(own->shape, tile);
    int64_t count = p.last - p.first;
    double *mean = own->sums + tile * channels, *squares = own->more + tile * channels;
    real *center = (real *)scratch, *few = center + width;
    const real *x = own->x + p.x;
    memset(center, 0, width * sizeof *center);
    memset(mean, 0, channels * sizeof *mean);
    memset(squares, 0, channels * sizeof *squares);
    add_rows(x, count, channels, mean, few);
    for (int64_t c = 0; c < channels; c++)
        center[c] = mean[c] /= count;
    for (int64_t start = 0; start < count; start += SHORT) {
        int64_t rows = least(SHORT, count - start);
        memset(few, 0, width * sizeof *few);
        for (int64_t m = 0; m < rows; m++, x += channels)
            EACH_VECTOR(c, some, channels, {
                vec away = load_some(x + c, some) - load(center + c);
                store(few + c, load(few + c) + away * away);
            });
        for (int64_t c = 0; c < channels; c++) squares[c] += few[c];
    }
}

/* mean and variance (R, C) of all rows; `means` and `squares` (parts, R, C) are those of parts.

     mean = Σ M_p · mean_p / M        variance = Σ ( squares_p + M_p · (mean_p − mean)² ) / M

   Chan, Golub and LeVeque 1983, eq. 1.5 */
EXPORT int norm_moments(const real *x, const struct rows *shape, double *means, double *squares,
                        double *mean, double *variance, int64_t threads) {
    struct rows_job job = {.shape = shape, .x = x, .sums = means, .more = squares};
    int64_t size = shape->replicas * shape->channels;
    if (run_tiles(moments_tile, &job, shape->parts * shape->replicas,
                  2 * round_up(shape->channels, VL) * sizeof(real), threads))
        return -1;
    memset(mean, 0, size * sizeof *mean);
    memset(variance, 0, size * sizeof *variance);
    double all = shape->rows;
    for (int64_t p = 0; p < shape->parts; p++) {
        double rows = rows_of_part(shape, p);
        for (int64_t k = 0; k < size; k++) mean[k] += rows * means[p * size + k] / all;
    }
    for (int64_t p = 0; p < shape->parts; p++) {
        double rows = rows_of_part(shape, p);
        for (int64_t k = 0; k < size; k++) {
            double away = means[p * size + k] - mean[k];
            variance[k] += (squares[p * size + k] + rows * away * away) / all;
        }
    }
    return 0;
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
    for (int64_t m = p.first; m < p.last; m++, x += s->channels, y += s->channels)
        EACH_VECTOR(c, some, s->channels, {
            vec a = load_some(factor + c, some) * load_some(x + c, some) + load_some(offset + c, some);
            store_result(y + c, activated(a, s->activation), some, far);
        });
}

EXPORT int normalize(const real *x, const real *factor, const real *offset,
                     const struct rows *shape, int64_t backwards, real *y, int64_t threads) {
    struct rows_job job = {.shape = shape, .x = x, .factor = factor, .offset = offset,
                           .result = y, .backwards = backwards};
    return run_tiles(normalize_tile, &job, shape->parts * shape->replicas, 0, threads);
}

/* g' = g where f is steep at a = factor · x + offset, and 0 · g where it is flat: of NaN and
   infinity that is NaN. To compute a again is cheaper than to read y = f(a). */
static inline vec passed(vec g, vec a, int64_t activation) {
    if (activation != LINEAR) {
        vec_mask through = a > 0;
        if (activation == RELU6)
            through &= a < 6;
        g *= chosen(through, spread(1), (vec){0});
    }
    return g;
}

/* sum[k] = Σ_p parts[p, k] */
static void add_parts(const double *parts, int64_t count, int64_t size, double *sum) {
    memset(sum, 0, size * sizeof *sum);
    for (int64_t p = 0; p < count; p++)
        for (int64_t k = 0; k < size; k++) sum[k] += parts[p * size + k];
}

/* Σ g' and Σ g' · (x − center), of the rows of one part. */
static void norm_sums_tile(const void *job, int64_t tile, char *scratch) {
    const struct rows_job *own = job;
    const struct rows *s = own->shape;
    struct part p = part_of(s, tile);
    int64_t channels = s->channels, width = round_up(channels, VL);
    const real *center = own->center + p.replica * channels;
    const real *factor = own->factor + p.replica * channels;
    const real *offset = own->offset + p.replica * channels;
    double *sums = own->sums + tile * channels, *products = own->more + tile * channels;
    memset(sums, 0, channels * sizeof *sums);
    memset(products, 0, channels * sizeof *products);
    real *few = (real *)scratch, *few_products = few + width;
    const real *x = own->x + p.x, *g = own->g + p.y;
    for (int64_t start = p.first; start < p.last; start += SHORT) {
        int64_t rows = least(SHORT, p.last - start);
        memset(few, 0, 2 * width * sizeof *few);
        for (int64_t m = 0; m < rows; m++, x += channels, g += channels)
            EACH_VECTOR(c, some, channels, {
                vec own_x = load_some(x + c, some), away = own_x - load_some(center + c, some);
                vec a = load_some(factor + c, some) * own_x + load_some(offset + c, some);
                vec own_g = passed(load_some(g + c, some), a, s->activation);
                store(few + c, load(few + c) + own_g);
                store(few_products + c, load(few_products + c) + own_g * away);
            });
        for (int64_t c = 0; c < channels; c++) {
            sums[c] += few[c];
            products[c] += few_products[c];
        }
    }
}

EXPORT int norm_sums(const real *g, const real *x, const real *center, const real *factor,
                     const real *offset, const struct rows *shape, double *sums, double *products,
                     double *sum, double *product, int64_t threads) {
    struct rows_job job = {.shape = shape, .x = x, .g = g, .center = center, .factor = factor,
                           .offset = offset, .sums = sums, .more = products};
    int64_t size = shape->replicas * shape->channels;
    if (run_tiles(norm_sums_tile, &job, shape->parts * shape->replicas,
                  2 * round_up(shape->channels, VL) * sizeof(real), threads))
        return -1;
    add_parts(sums, shape->parts, size, sum);
    add_parts(products, shape->parts, size, product);
    return 0;
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
        EACH_VECTOR(c, some, channels, {
            vec own_x = load_some(x + c, some), own_factor = load_some(factor + c, some);
            vec a = own_factor * own_x + load_some(offset + c, some);
            vec sum = own_factor * passed(load_some(g + c, some), a, s->activation);
            if (s->with_moments)
                sum += load_some(slope + c, some) * own_x + load_some(constant + c, some);
            store_result(result + c, sum, some, far);
        });
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
    int64_t first = tile * ACTIVATION_BLOCK, count = least(ACTIVATION_BLOCK, own->size - first);
    const real *g = own->g + first, *y = own->y + first;
    (void)scratch;
    EACH_VECTOR(k, some, count, {
        vec through = passed(load_some(g + k, some), load_some(y + k, some), own->activation);
        store_some(own->result + first + k, through, some);
    });
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
    add_rows(own->x + p.y, p.last - p.first, own->shape->channels, sums,
             (real *)scratch);
}

/* partial (parts, R, C) is for the sums of parts, sums (R, C) for those of all rows */
EXPORT int sum_rows(const real *x, const struct rows *shape, double *partial, double *sums,
                    int64_t threads) {
    struct rows_job job = {.shape = shape, .x = x, .sums = partial};
    if (run_tiles(sum_rows_tile, &job, shape->parts * shape->replicas,
                  round_up(shape->channels, VL) * sizeof(real), threads))
        return -1;
    add_parts(partial, shape->parts, shape->replicas * shape->channels, sums);
    return 0;
}
