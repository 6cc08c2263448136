/* Winograd's minimal filtering: a convolution with fewer multiplications. winograd.py says how.

     y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ x B) ] A      for every piece of m × m outputs, n × n pixels

   For each of the n² points this is one product: (pieces × C) · (C × O). All vectors here are
   neighbouring channels. */

#define MOST_POINTS 8 /* n */

/* The matrices of one size, from winograd.py; n is even. */
struct winograd {
    int64_t m, r, n;   /* outputs and taps of a piece along one axis, n = m + r − 1 */
    const real *a, *g, *b; /* A (n, m), G (n, r), Bᵀ (n, n) */
};

/* From k coefficients of a polynomial to its values at n points: out = M in, with M (n, k).

   The points are 0, then pairs ±p, then infinity. The even powers of p and −p are equal, the odd
   ones opposite: half of the multiplications serve both. */
INLINE void
to_points(const real *matrix, const int n, const int k, const vec *in, const int in_step,
          vec *out, const int out_step) {
    vec zero = matrix[0] * in[0], infinity = matrix[n * k - 1] * in[(k - 1) * in_step];
    for (int i = 2; i < k; i += 2) zero += matrix[i] * in[i * in_step];
    for (int i = k - 3; i >= 0; i -= 2) infinity += matrix[(n - 1) * k + i] * in[i * in_step];
    out[0] = zero;
    out[(n - 1) * out_step] = infinity;
    for (int p = 1; p < n - 1; p += 2) {
        vec even = matrix[p * k] * in[0], odd = matrix[p * k + 1] * in[in_step];
        for (int i = 2; i < k; i += 2) even += matrix[p * k + i] * in[i * in_step];
        for (int i = 3; i < k; i += 2) odd += matrix[p * k + i] * in[i * in_step];
        out[p * out_step] = even + odd;
        out[(p + 1) * out_step] = even - odd;
    }
}

/* The transpose: out = Mᵀ in, from n values to k numbers. */
INLINE void
from_points(const real *matrix, const int n, const int k, const vec *in, const int in_step,
            vec *out, const int out_step) {
    vec sum[MOST_POINTS], difference[MOST_POINTS];
    for (int p = 1; p < n - 1; p += 2) {
        sum[p] = in[p * in_step] + in[(p + 1) * in_step];
        difference[p] = in[p * in_step] - in[(p + 1) * in_step];
    }
    for (int i = 0; i < k; i++) {
        vec value = matrix[i + k] * (i % 2 ? difference : sum)[1];
        for (int p = 3; p < n - 1; p += 2)
            value += matrix[i + p * k] * (i % 2 ? difference : sum)[p];
        if (i % 2 == 0)
            value += matrix[i] * in[0];
        if (i % 2 == (k - 1) % 2)
            value += matrix[i + (n - 1) * k] * in[(n - 1) * in_step];
        out[i * out_step] = value;
    }
}

/* Both axes: M in Mᵀ (n, n) of in (k, k), and Mᵀ in M (k, k) of in (n, n). */
INLINE void
square_to_points(const real *matrix, const int n, const int k, const vec *in, vec *out) {
    vec down[MOST_POINTS * MOST_POINTS];
    for (int j = 0; j < k; j++) to_points(matrix, n, k, in + j, k, down + j, k);
    for (int i = 0; i < n; i++) to_points(matrix, n, k, down + i * k, 1, out + i * n, 1);
}

INLINE void
square_from_points(const real *matrix, const int n, const int k, const vec *in, vec *out) {
    vec down[MOST_POINTS * MOST_POINTS];
    for (int j = 0; j < n; j++) from_points(matrix, n, k, in + j, n, down + j, n);
    for (int i = 0; i < k; i++) from_points(matrix, n, k, down + i * n, 1, out + i * k, 1);
}

/* The same for the sizes there are, so that the compiler sees them as constants. */
#define FOR_SIZE(size, call)                            \
    if ((size)->n == 8 && (size)->m == 4) {             \
        enum { n = 8, m = 4, r = 5 };                   \
        call;                                           \
    } else {                                            \
        enum { n = 6, m = 4, r = 3 };                   \
        call;                                           \
    }

static void points_of_input(const struct winograd *size, const vec *in, vec *out) {
    FOR_SIZE(size, square_to_points(size->b, n, n, in, out))
}
static void points_of_kernel(const struct winograd *size, const vec *in, vec *out) {
    FOR_SIZE(size, square_to_points(size->g, n, r, in, out))
}
static void points_of_output(const struct winograd *size, const vec *in, vec *out) {
    FOR_SIZE(size, square_to_points(size->a, n, m, in, out))
}
static void output_of_points(const struct winograd *size, const vec *in, vec *out) {
    FOR_SIZE(size, square_from_points(size->a, n, m, in, out))
}
static void kernel_of_points(const struct winograd *size, const vec *in, vec *out) {
    FOR_SIZE(size, square_from_points(size->g, n, r, in, out))
}

/* A batch as pieces. Tiles are cut as for any convolution, but of whole rows of pieces. */
struct pieces {
    struct cut cut;
    int64_t across;    /* pieces in a row */
    int64_t most;      /* pieces in a tile, at most */
    int64_t in_width, out_width; /* channels, whole vectors */
    int64_t in_plane, out_plane; /* from one point of all pieces to the next */
};

static struct pieces cut_pieces(const struct windows *w, const struct winograd *size,
                                int by_columns) {
    struct pieces p = {.across = divide_up(w->output[1], size->m),
                       .in_width = round_up(w->channels, VL),
                       .out_width = round_up(w->out_channels, VL)};
    int64_t high = divide_up(w->output[0], size->m), n2 = size->n * size->n;
    int64_t row_bytes = p.across * n2 * (p.in_width + p.out_width) * sizeof(real);
    int64_t fitting = most(1, w->tile_bytes / row_bytes), multiple = w->pool[0];
    int64_t rows = round_up(least(high, fitting), multiple);
    struct cut *cut = &p.cut;
    cut->images = rows < high ? 1 : most(1, least(fitting / high, w->images / LEAST_TILES));
    cut->blocks = divide_up(w->images, cut->images);
    int64_t wanted = divide_up(LEAST_TILES, most(1, cut->blocks * w->replicas));
    int64_t enough = divide_up(2 * MR, p.across); /* rows with enough pieces for a product */
    rows = least(rows, round_up(most(divide_up(high, wanted), enough), multiple));
    cut->strips = divide_up(high, rows);
    cut->rows = rows * size->m;
    cut->part_vectors = 0;
    cut->parts = 1;
    cut->tiles = w->replicas * cut->blocks * cut->strips;
    p.most = cut->images * rows * p.across;
    /* One line more, so that the points of a piece do not compete for the same places of the
       cache. */
    p.in_plane = round_up(p.most, MR) * p.in_width + VL;
    p.out_plane = round_up(p.most, MR) * p.out_width + VL;
    (void)by_columns;
    return p;
}

struct winograd_job {
    struct windows w;
    struct winograd size;
    struct pieces pieces;
    const real *x, *g, *weights; /* g for the gradient of the weights */
    const real *bias;
    real *kernels; /* points of the kernels: (R, n², panels of C × O) */
    real *sums;    /* of the weight gradient: (R, lanes, n², C, out_width) */
    real *y;
    uint8_t *winners;
    int64_t transposed, lanes;
};

/* The points of the kernel that leads from one input channel c: n² rows of O. */
static void kernel_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct winograd_job *job = pointer;
    int64_t in = job->w.channels, out = job->w.out_channels, taps = job->size.r * job->size.r;
    int64_t replica = tile / in, c = tile % in, n2 = job->size.n * job->size.n;
    const real *w = job->weights + replica * taps * in * out;
    real *kernels = job->kernels + replica * n2 * in * job->pieces.out_width;
    vec tap[MOST_POINTS * MOST_POINTS], point[MOST_POINTS * MOST_POINTS];
    (void)scratch;
    EACH_PANEL(v, vectors, out)
        for (int64_t u = 0; u < vectors; u++) {
            int64_t o = (v + u) * VL;
            for (int64_t k = 0; k < taps; k++)
                if (job->transposed) { /* w[tap, o, c] of the flipped kernel */
                    real column[VECTOR_BYTES / sizeof(real)] = {0};
                    for (int64_t i = 0; i < least(VL, out - o); i++)
                        column[i] = w[((taps - 1 - k) * out + o + i) * in + c];
                    tap[k] = load(column);
                } else
                    tap[k] = load_some(w + (k * in + c) * out + o, out - o);
            points_of_kernel(&job->size, tap, point);
            for (int64_t p = 0; p < n2; p++)
                store(kernels + p * in * job->pieces.out_width + in * v * VL +
                          (c * vectors + u) * VL, point[p]);
        }
}

/* The points of the pieces behind a tile: (n², pieces, channels). Returns how many pieces. */
static int64_t input_points(const struct winograd_job *job, struct place at, real *points,
                            char *scratch) {
    const struct windows *w = &job->w;
    const struct winograd *size = &job->size;
    int64_t n = size->n, m = size->m, channels = w->channels, piece = 0;
    int64_t high = divide_up(at.rows, m), across = job->pieces.across;
    int64_t rows = high * m + n - m, columns = across * m + n - m;
    int64_t source = w->sources == 1 ? 0 : at.replica;
    real *padded = (real *)scratch;
    vec in[MOST_POINTS * MOST_POINTS], out[MOST_POINTS * MOST_POINTS];
    for (int64_t image = at.image; image < at.image + at.images; image++) {
        copy_with_border(job->x + (source * w->images + image) * w->height * w->width * channels,
                         w->height, w->width, channels, at.row - w->before[0], -w->before[1],
                         rows, columns, padded);
        for (int64_t i = 0; i < high; i++)
            for (int64_t j = 0; j < across; j++, piece++)
                for (int64_t c = 0; c < channels; c += VL) {
                    const real *from = padded + ((i * columns + j) * m) * channels + c;
                    for (int64_t u = 0; u < n; u++)
                        for (int64_t v = 0; v < n; v++)
                            in[u * n + v] = load_some(from + (u * columns + v) * channels,
                                                      channels - c);
                    points_of_input(size, in, out);
                    real *to = points + piece * job->pieces.in_width + c;
                    for (int64_t p = 0; p < n * n; p++)
                        store(to + p * job->pieces.in_plane, out[p]);
                }
    }
    return piece;
}

static size_t padded_bytes(const struct winograd_job *job) {
    int64_t extra = job->size.r - 1;
    return 64 + sizeof(real) * job->w.channels * (job->pieces.cut.rows + extra) *
                    (job->pieces.across * job->size.m + extra);
}

static void winograd_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct winograd_job *job = pointer;
    const struct windows *w = &job->w;
    const struct winograd *size = &job->size;
    const struct pieces *p = &job->pieces;
    struct place at = place_of(w, &p->cut, tile);
    int64_t n2 = size->n * size->n, m = size->m, channels = w->channels;
    real *inputs = carve(&scratch, n2 * p->in_plane * sizeof(real));
    real *outputs = carve(&scratch, n2 * p->out_plane * sizeof(real));
    int64_t count = input_points(job, at, inputs, scratch), zero = 0;
    const real *kernels = job->kernels + at.replica * n2 * channels * p->out_width;
    struct runs runs = {&zero, 1, channels, 1};
    for (int64_t point = 0; point < n2; point++) {
        const real *in = inputs + point * p->in_plane;
        const real *kernel = kernels + point * channels * p->out_width;
        EACH_PANEL(v, vectors, w->out_channels)
            for (int64_t q = 0; q < count; q += MR) {
                const real *rows[MR];
                for (int64_t i = 0; i < MR; i++) rows[i] = in + (q + i) * p->in_width;
                struct results to = {
                    .c = outputs + point * p->out_plane + q * p->out_width + v * VL,
                    .ldc = p->out_width, .rows = MR, .columns = vectors * VL};
                product(rows, runs, kernel + channels * v * VL, vectors * VL, to, vectors);
            }
    }
    const int pooled = job->winners != NULL;
    int64_t high = divide_up(at.rows, m), row = p->across * m * p->out_width;
    const real *bias = job->bias ? job->bias + at.replica * p->out_width : NULL;
    int64_t image = at.replica * w->images + at.image, piece = 0;
    real *pooling = (real *)scratch; /* the outputs of one image, where they are pooled */
    vec in[MOST_POINTS * MOST_POINTS], out[MOST_POINTS * MOST_POINTS];
    for (int64_t k = 0; k < at.images; k++, image++) {
        for (int64_t i = 0; i < high; i++)
            for (int64_t j = 0; j < p->across; j++, piece++)
                for (int64_t o = 0; o < w->out_channels; o += VL) {
                    const real *from = outputs + piece * p->out_width + o;
                    for (int64_t q = 0; q < n2; q++) in[q] = load(from + q * p->out_plane);
                    output_of_points(size, in, out);
                    if (pooled) {
                        real *to = pooling + i * m * row + j * m * p->out_width + o;
                        for (int64_t u = 0; u < m; u++)
                            for (int64_t v = 0; v < m; v++)
                                store(to + u * row + v * p->out_width, out[u * m + v]);
                        continue;
                    }
                    vec offset = bias ? load(bias + o) : (vec){0};
                    int64_t top = at.row + i * m, left = j * m;
                    int64_t rows = least(m, w->output[0] - top);
                    int64_t columns = least(m, w->output[1] - left);
                    for (int64_t u = 0; u < rows; u++)
                        for (int64_t v = 0; v < columns; v++) {
                            int64_t pixel = (image * w->output[0] + top + u) * w->output[1];
                            vec value = out[u * m + v];
                            if (bias)
                                value += offset;
                            store_some(job->y + (pixel + left + v) * w->out_channels + o,
                                       activated(value, w->activation), w->out_channels - o);
                        }
                }
        if (!pooled)
            continue;
        int64_t tall = w->output[0] / w->pool[0], wide = w->output[1] / w->pool[1];
        for (int64_t i = 0; i < at.rows / w->pool[0]; i++) {
            int64_t to = (image * tall + at.row / w->pool[0] + i) * wide * w->out_channels;
            keep_largest(pooling + i * w->pool[0] * row, row, p->out_width, w->pool, wide,
                         w->out_channels, bias, w->activation, job->y + to, job->winners + to,
                         w->out_channels);
        }
    }
}

/* As `convolve`, for stride and dilation 1, and kernels of r × r. */
EXPORT int convolve_winograd(const real *x, const real *weights, const real *bias, real *y,
                             uint8_t *winners, const struct windows *w, int64_t transposed,
                             const real *a, const real *g, const real *b, int64_t m,
                             int64_t threads) {
    int64_t r = w->kernel[0];
    struct winograd_job job = {.w = *w, .size = {m, r, m + r - 1, a, g, b}, .x = x,
                               .weights = weights, .y = y, .winners = winners,
                               .transposed = transposed};
    job.pieces = cut_pieces(w, &job.size, 1);
    const struct pieces *p = &job.pieces;
    int64_t n2 = job.size.n * job.size.n;
    char *memory = own_memory(FOR_JOB, w->replicas * (n2 * w->channels + 1) * p->out_width *
                                           sizeof(real) + 128);
    if (!memory)
        return -1;
    job.kernels = carve(&memory, w->replicas * n2 * w->channels * p->out_width * sizeof(real));
    job.bias = bias ? fill_up(bias, w->replicas, w->out_channels, &memory) : NULL;
    if (run_tiles(kernel_tile, &job, w->replicas * w->channels, 0, threads))
        return -1;
    size_t padded = padded_bytes(&job);
    size_t pooling = winners ? p->cut.rows * p->across * m * p->out_width * sizeof(real) : 0;
    size_t bytes = n2 * (p->in_plane + p->out_plane) * sizeof(real) + 128 +
                   (padded > pooling ? padded : pooling);
    return run_tiles(winograd_tile, &job, p->cut.tiles, bytes, threads);
}

/* --- the gradient with respect to w -------------------------------------------------------- */

/* The points of the gradient of a tile's outputs: (n², pieces, O), zero behind the edges. */
static void output_points(const struct winograd_job *job, struct place at, real *points) {
    const struct windows *w = &job->w;
    const struct winograd *size = &job->size;
    int64_t m = size->m, n2 = size->n * size->n, high = divide_up(at.rows, m), piece = 0;
    vec in[MOST_POINTS * MOST_POINTS], out[MOST_POINTS * MOST_POINTS];
    for (int64_t k = 0; k < at.images; k++) {
        int64_t image = at.replica * w->images + at.image + k;
        for (int64_t i = 0; i < high; i++)
            for (int64_t j = 0; j < job->pieces.across; j++, piece++)
                for (int64_t o = 0; o < w->out_channels; o += VL) {
                    int64_t top = at.row + i * m, left = j * m;
                    for (int64_t u = 0; u < m; u++)
                        for (int64_t v = 0; v < m; v++) {
                            int inside = top + u < w->output[0] && left + v < w->output[1];
                            int64_t pixel = (image * w->output[0] + top + u) * w->output[1];
                            in[u * m + v] =
                                inside ? load_some(job->g + (pixel + left + v) * w->out_channels +
                                                       o, w->out_channels - o)
                                       : (vec){0};
                        }
                    points_of_output(size, in, out);
                    real *to = points + piece * job->pieces.out_width + o;
                    for (int64_t p = 0; p < n2; p++)
                        store(to + p * job->pieces.out_plane, out[p]);
                }
    }
}

static void winograd_lane(const void *pointer, int64_t number, char *scratch) {
    const struct winograd_job *job = pointer;
    const struct windows *w = &job->w;
    const struct pieces *p = &job->pieces;
    int64_t replica = number / job->lanes, lane = number % job->lanes;
    int64_t tiles = p->cut.blocks * p->cut.strips, n2 = job->size.n * job->size.n, zero = 0;
    real *sums = job->sums + number * n2 * w->channels * p->out_width;
    real *inputs = carve(&scratch, n2 * p->in_plane * sizeof(real));
    real *outputs = carve(&scratch, n2 * p->out_plane * sizeof(real));
    if (lane >= tiles)
        memset(sums, 0, n2 * w->channels * p->out_width * sizeof(real));
    for (int64_t tile = lane; tile < tiles; tile += job->lanes) {
        struct place at = place_of(w, &p->cut, replica * tiles + tile);
        int64_t count = input_points(job, at, inputs, scratch);
        output_points(job, at, outputs);
        struct runs runs = {&zero, 1, count, p->in_width};
        for (int64_t point = 0; point < n2; point++)
            EACH_PANEL(v, vectors, w->out_channels)
                for (int64_t c = 0; c < w->channels; c += MR) {
                    const real *rows[MR];
                    for (int64_t i = 0; i < MR; i++)
                        rows[i] = inputs + point * p->in_plane + least(c + i, w->channels - 1);
                    struct results to = {
                        .c = sums + (point * w->channels + c) * p->out_width + v * VL,
                        .ldc = p->out_width, .rows = w->channels - c, .columns = vectors * VL,
                        .add = tile != lane};
                    product(rows, runs, outputs + point * p->out_plane + v * VL, p->out_width, to,
                            vectors);
                }
    }
}

/* From the lanes' sums to the gradient of the kernel that leads from one input channel c. */
static void kernel_gradient_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct winograd_job *job = pointer;
    const struct windows *w = &job->w;
    int64_t replica = tile / w->channels, c = tile % w->channels;
    int64_t n2 = job->size.n * job->size.n, taps = job->size.r * job->size.r;
    int64_t width = job->pieces.out_width, lane = n2 * w->channels * width;
    vec in[MOST_POINTS * MOST_POINTS], out[MOST_POINTS * MOST_POINTS];
    (void)scratch;
    for (int64_t o = 0; o < w->out_channels; o += VL) {
        for (int64_t p = 0; p < n2; p++) {
            const real *sums = job->sums + replica * job->lanes * lane +
                               (p * w->channels + c) * width + o;
            in[p] = load(sums);
            for (int64_t i = 1; i < job->lanes; i++) in[p] += load(sums + i * lane);
        }
        kernel_of_points(&job->size, in, out);
        for (int64_t k = 0; k < taps; k++)
            store_some(job->y + ((replica * taps + k) * w->channels + c) * w->out_channels + o,
                       out[k], w->out_channels - o);
    }
}

/* As `convolve_weight_gradient`, for stride and dilation 1, and kernels of r × r. */
EXPORT int convolve_weight_gradient_winograd(const real *x, const real *gradient, real *result,
                                             const struct windows *w, const real *a,
                                             const real *g, const real *b, int64_t m,
                                             int64_t threads) {
    int64_t r = w->kernel[0];
    struct winograd_job job = {.w = *w, .size = {m, r, m + r - 1, a, g, b}, .x = x,
                               .g = gradient, .y = result};
    job.pieces = cut_pieces(w, &job.size, 0);
    const struct pieces *p = &job.pieces;
    int64_t n2 = job.size.n * job.size.n;
    job.lanes = count_lanes(w, &p->cut);
    job.sums = (real *)own_memory(FOR_JOB, w->replicas * job.lanes * n2 * w->channels *
                                               p->out_width * sizeof(real));
    if (!job.sums)
        return -1;
    size_t bytes = n2 * (p->in_plane + p->out_plane) * sizeof(real) + 128 + padded_bytes(&job);
    if (run_tiles(winograd_lane, &job, w->replicas * job.lanes, bytes, threads))
        return -1;
    return run_tiles(kernel_gradient_tile, &job, w->replicas * w->channels, 0, threads);
}
