/* Pooling: of the pixels of every window the largest, or the mean; and the way back. */

/* The part of `struct windows` that pooling needs is the same; channels stay what they are.
   A tile is one row of outputs of one image, or, on the way back, one image. */

struct pooling_job {
    struct windows w;
    const real *x, *g, *y, *divisor; /* divisor (OH, OW): how many pixels count in a window */
    real *result;
    const uint8_t *winners;
};

/* For each tap of the window at output (i, j) that meets a pixel: its number and its place. */
#define EACH_PIXEL(w, i, j, pixel)                                                          \
    for (int64_t u = 0, row = (i) * (w)->stride[0] - (w)->before[0]; u < (w)->kernel[0];    \
         u++, row += (w)->dilation[0])                                                      \
        if (row >= 0 && row < (w)->height)                                                  \
            for (int64_t v = 0, column = (j) * (w)->stride[1] - (w)->before[1], pixel;      \
                 v < (w)->kernel[1]; v++, column += (w)->dilation[1])                       \
                if (pixel = row * (w)->width + column, column >= 0 && column < (w)->width)

/* y = the larger of x and y, number by number; a NaN is larger than all. */
INLINE void keep_larger(const real *x, int64_t count, real *y) {
    EACH_VECTOR(c, some, count, {
        vec value = load_some(x + c, some), largest = load_some(y + c, some);
        store_some(y + c, chosen((value > largest) | (value != value), value, largest), some);
    });
}

/* y += x */
INLINE void add_to(const real *x, int64_t count, real *y) {
    EACH_VECTOR(c, some, count,
                store_some(y + c, load_some(y + c, some) + load_some(x + c, some), some));
}

/* y = x / divisor */
INLINE void divide(const real *x, int64_t count, real divisor, real *y) {
    EACH_VECTOR(c, some, count, store_some(y + c, load_some(x + c, some) / divisor, some));
}

/* y = the largest of a window */
static void max_pool_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct pooling_job *job = pointer;
    const struct windows *w = &job->w;
    int64_t channels = w->channels, i = tile % w->output[0], image = tile / w->output[0];
    const real *x = job->x + image * w->height * w->width * channels;
    real *y = job->result + tile * w->output[1] * channels;
    (void)scratch;
    for (int64_t j = 0; j < w->output[1]; j++, y += channels) {
        for (int64_t c = 0; c < channels; c++) y[c] = -__builtin_inf();
        EACH_PIXEL(w, i, j, pixel) keep_larger(x + pixel * channels, channels, y);
    }
}

/* x̄[pixel] = Σ g of the windows whose first pixel equal to the largest it is. */
static void max_pool_gradient_tile(const void *pointer, int64_t image, char *scratch) {
    const struct pooling_job *job = pointer;
    const struct windows *w = &job->w;
    int64_t channels = w->channels, size = w->height * w->width * channels;
    const real *x = job->x + image * size;
    int64_t first = image * w->output[0] * w->output[1] * channels;
    const real *g = job->g + first, *y = job->y + first;
    real *to = job->result + image * size;
    real *left = (real *)scratch; /* of g, whole vectors: 0 once a pixel has won it */
    const vec none = {0};
    memset(to, 0, size * sizeof(real));
    for (int64_t i = 0; i < w->output[0]; i++)
        for (int64_t j = 0; j < w->output[1]; j++, g += channels, y += channels) {
            memcpy(left, g, channels * sizeof(real));
            EACH_PIXEL(w, i, j, pixel) {
                const real *from = x + pixel * channels;
                real *into = to + pixel * channels;
                EACH_VECTOR(c, some, channels, {
                    vec_mask wins = load_some(from + c, some) == load_some(y + c, some);
                    vec share = load(left + c);
                    vec sum = load_some(into + c, some) + chosen(wins, share, none);
                    store_some(into + c, sum, some);
                    store(left + c, chosen(wins, none, share));
                });
            }
        }
}

/* y = Σ of a window / divisor */
static void mean_pool_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct pooling_job *job = pointer;
    const struct windows *w = &job->w;
    int64_t channels = w->channels, i = tile % w->output[0], image = tile / w->output[0];
    const real *x = job->x + image * w->height * w->width * channels;
    real *y = job->result + tile * w->output[1] * channels;
    (void)scratch;
    for (int64_t j = 0; j < w->output[1]; j++, y += channels) {
        real divisor = job->divisor[i * w->output[1] + j];
        memset(y, 0, channels * sizeof(real));
        EACH_PIXEL(w, i, j, pixel) add_to(x + pixel * channels, channels, y);
        divide(y, channels, divisor, y);
    }
}

/* x̄[pixel] = Σ g / divisor of the windows that see it */
static void mean_pool_gradient_tile(const void *pointer, int64_t image, char *scratch) {
    const struct pooling_job *job = pointer;
    const struct windows *w = &job->w;
    int64_t channels = w->channels, size = w->height * w->width * channels;
    const real *g = job->g + image * w->output[0] * w->output[1] * channels;
    real *to = job->result + image * size, *share = (real *)scratch;
    memset(to, 0, size * sizeof(real));
    for (int64_t i = 0; i < w->output[0]; i++)
        for (int64_t j = 0; j < w->output[1]; j++, g += channels) {
            real divisor = job->divisor[i * w->output[1] + j];
            divide(g, channels, divisor, share);
            EACH_PIXEL(w, i, j, pixel) add_to(share, channels, to + pixel * channels);
        }
}

static int64_t pooling_threads(const struct windows *w, int64_t threads) {
    int64_t reads = w->images * w->output[0] * w->output[1] * w->kernel[0] * w->kernel[1];
    return reads * w->channels < ENOUGH_WORK ? 1 : threads;
}

EXPORT int max_pool(const real *x, real *y, const struct windows *w, int64_t threads) {
    struct pooling_job job = {.w = *w, .x = x, .result = y};
    return run_tiles(max_pool_tile, &job, w->images * w->output[0], 0,
                     pooling_threads(w, threads));
}

EXPORT int max_pool_gradient(const real *g, const real *x, const real *y, real *result,
                             const struct windows *w, int64_t threads) {
    struct pooling_job job = {.w = *w, .x = x, .g = g, .y = y, .result = result};
    return run_tiles(max_pool_gradient_tile, &job, w->images,
                     round_up(w->channels, VL) * sizeof(real), pooling_threads(w, threads));
}

EXPORT int mean_pool(const real *x, const real *divisor, real *y, const struct windows *w,
                     int64_t threads) {
    struct pooling_job job = {.w = *w, .x = x, .divisor = divisor, .result = y};
    return run_tiles(mean_pool_tile, &job, w->images * w->output[0], 0,
                     pooling_threads(w, threads));
}

EXPORT int mean_pool_gradient(const real *g, const real *divisor, real *result,
                              const struct windows *w, int64_t threads) {
    struct pooling_job job = {.w = *w, .g = g, .divisor = divisor, .result = result};
    return run_tiles(mean_pool_gradient_tile, &job, w->images, w->channels * sizeof(real),
                     pooling_threads(w, threads));
}

/* The way back through the pooling of `convolve`: every gradient goes to its window's winner.

   Each row of windows of an image is a tile; rows of pixels behind the last are zero. */
static void unpool_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct pooling_job *job = pointer;
    const struct windows *w = &job->w;
    int64_t channels = w->channels, wide = w->output[1];
    int64_t i = tile % most(1, w->output[0]), image = tile / most(1, w->output[0]);
    const real *g = job->g + tile * wide * channels;
    const uint8_t *winners = job->winners + tile * wide * channels;
    int64_t top = i * w->pool[0], line = w->width * channels;
    real *to = job->result + (image * w->height + top) * line;
    int64_t covered = wide * w->pool[1] * channels;
    const vec none = {0};
    (void)scratch;
    for (int64_t u = 0; u < w->pool[0]; u++) {
        for (int64_t j = 0; j < wide; j++)
            for (int64_t v = 0; v < w->pool[1]; v++) {
                real *pixel = to + u * line + (j * w->pool[1] + v) * channels;
                const vec_mask number = (whole)(u * w->pool[1] + v) - (vec_mask){0};
                EACH_VECTOR(c, some, channels, {
                    vec_bytes bytes = load_bytes(winners + j * channels + c, some);
                    vec_mask won = __builtin_convertvector(bytes, vec_mask) == number;
                    vec share = load_some(g + j * channels + c, some);
                    store_some(pixel + c, chosen(won, share, none), some);
                });
            }
        memset(to + u * line + covered, 0, (line - covered) * sizeof(real));
    }
    if (i == w->output[0] - 1) {
        int64_t rest = w->height - w->output[0] * w->pool[0];
        memset(to + w->pool[0] * line, 0, rest * line * sizeof(real));
    }
}

/* g, winners (images, OH, OW, C), result (images, H, W, C); `pool` is the window */
EXPORT int unpool(const real *g, const uint8_t *winners, real *result, const struct windows *w,
                  int64_t threads) {
    struct pooling_job job = {.w = *w, .g = g, .winners = winners, .result = result};
    int64_t size = w->images * w->height * w->width * w->channels;
    return run_tiles(unpool_tile, &job, w->images * w->output[0], 0,
                     size < ENOUGH_WORK ? 1 : threads);
}
