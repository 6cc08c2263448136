/* Depthwise convolution: every channel has a kernel of its own.

     y[r,n,i,j,c] = f( b[r,c] + Σ_uv x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c] )

   Channels lie side by side, so VL of them are filtered at once. Taps that fall on the padding
   are left out: what they would add is zero. */

struct depthwise {
    int64_t sources, replicas, images; /* sources: 1 where all replicas see the same images */
    int64_t height, width, channels;
    int64_t kernel[2], stride[2], before[2], dilation[2]; /* before: padding above and left */
    int64_t output[2];
    int64_t activation;
};

/* Outputs first … last−1 of an axis whose tap number k meets a pixel, not the padding. */
static void outputs_met(int64_t k, int64_t stride, int64_t before, int64_t dilation, int64_t size,
                        int64_t outputs, int64_t *first, int64_t *last) {
    int64_t start = before - k * dilation; /* output o meets pixel o·stride − start */
    *first = start > 0 ? least(divide_up(start, stride), outputs) : 0;
    int64_t end = size + start; /* o·stride < end */
    *last = end > 0 ? least(divide_up(end, stride), outputs) : 0;
    *last = most(*last, *first);
}

/* Taps first … last−1 of an axis that meet a pixel from output o. */
static void taps_met(int64_t o, int64_t stride, int64_t before, int64_t dilation, int64_t size,
                     int64_t kernel, int64_t *first, int64_t *last) {
    int64_t start = before - o * stride; /* tap k meets pixel k·dilation − start */
    *first = start > 0 ? least(divide_up(start, dilation), kernel) : 0;
    int64_t end = size + start;
    *last = end > 0 ? least(divide_up(end, dilation), kernel) : 0;
    *last = most(*last, *first);
}

/* What one row of outputs needs: the taps that meet pixels, and where these lie. */
struct filter {
    const real *x;      /* the row of pixels that tap `up` meets */
    const real *w;      /* (kh, kw, C) */
    const real *bias;   /* (C) or NULL */
    int64_t up, down;   /* taps up … down−1 of the kernel's rows meet pixels */
    int64_t row, pixel; /* numbers from one tap's row to the next, from one tap to the next */
    int64_t step;       /* numbers from what one output meets to what the next one does */
    int64_t columns;    /* of the kernel */
    int64_t tap;        /* numbers from one tap's weights to the next one's */
    int64_t channels, activation;
};

/* `count` neighbouring outputs, of which `x` is what tap (up, left) of the first one meets. With
   `near` outputs are one tap apart: `count` of them meet count + right − left − 1 pixels of a row,
   and each is read once. */
#define MOST_OUTPUTS 8
INLINE void filter_vector(
    const struct filter *f, const real *x, const int64_t left, const int64_t right,
    const int count, const int near, const int64_t c, const int64_t some, real *y) {
    vec sum[MOST_OUTPUTS], pixel[MOST_OUTPUTS + 2];
    UNROLL for (int p = 0; p < count; p++)
        sum[p] = f->bias ? load_some(f->bias + c, some) : (vec){0};
    for (int64_t u = f->up; u < f->down; u++) {
        const real *met = x + (u - f->up) * f->row + c;
        const real *w = f->w + (u * f->columns + left) * f->tap + c;
        if (near)
            UNROLL for (int p = 0; p < count + 2; p++) pixel[p] = load_some(met + p * f->pixel, some);
        UNROLL for (int64_t v = 0; v < right - left; v++) {
            vec weight = load_some(w + v * f->tap, some);
            UNROLL for (int p = 0; p < count; p++) {
                vec own = near ? pixel[p + v] : load_some(met + v * f->pixel + p * f->step, some);
                sum[p] += own * weight;
            }
        }
    }
    UNROLL for (int p = 0; p < count; p++)
        store_some(y + p * f->channels + c, activated(sum[p], f->activation), some);
}

INLINE void filter_pixels(
    const struct filter *f, const real *x, const int64_t left, const int64_t right,
    const int count, const int near, real *y) {
    EACH_VECTOR(c, some, f->channels, filter_vector(f, x, left, right, count, near, c, some, y));
}

/* One row of outputs (OW, C) from rows of pixels (·, W, C), of which x is what tap `up` meets.
   The weights of one tap follow those of the one before after `tap` numbers. */
static void filter_row(const struct depthwise *d, const real *x, int64_t up, int64_t down,
                       const real *w, int64_t tap, const real *bias, real *y) {
    int64_t stride = d->stride[1], before = d->before[1], dilation = d->dilation[1];
    struct filter f = {
        .x = x, .w = w, .bias = bias, .up = up, .down = down,
        .row = d->dilation[0] * d->width * d->channels, .pixel = dilation * d->channels,
        .step = stride * d->channels, .columns = d->kernel[1], .tap = tap,
        .channels = d->channels,
        .activation = d->activation,
    };
    /* Outputs whose taps all meet pixels: met by the first tap, and by the last. */
    int64_t first, last, ignored, columns = d->output[1];
    outputs_met(0, stride, before, dilation, d->width, columns, &first, &ignored);
    outputs_met(d->kernel[1] - 1, stride, before, dilation, d->width, columns, &ignored, &last);
    for (int64_t j = 0; j < columns;) {
        real *out = y + j * d->channels;
        const real *met = x + (j * stride - before) * d->channels;
        if (j >= first && j + 4 <= last) {
            const int near = d->kernel[1] == 3 && stride == dilation;
            int count = near && j + 8 <= last ? 8 : 4;
            if (count == 8)
                filter_pixels(&f, met, 0, 3, 8, 1, out);
            else if (near)
                filter_pixels(&f, met, 0, 3, 4, 1, out);
            else if (d->kernel[1] == 3)
                filter_pixels(&f, met, 0, 3, 4, 0, out);
            else
                filter_pixels(&f, met, 0, d->kernel[1], 4, 0, out);
            j += count;
            continue;
        }
        int64_t left, right;
        taps_met(j, stride, before, dilation, d->width, d->kernel[1], &left, &right);
        filter_pixels(&f, met + left * f.pixel, left, right, 1, 0, out);
        j++;
    }
}

struct depthwise_job {
    const struct depthwise *d;
    const real *x, *w, *bias;
    real *y;
    int64_t rows; /* of outputs in a tile */
    int64_t strips;
};

static void depthwise_tile(const void *job, int64_t tile, char *scratch) {
    const struct depthwise_job *own = job;
    const struct depthwise *d = own->d;
    int64_t strip = tile % own->strips, image = tile / own->strips % d->images;
    int64_t r = tile / own->strips / d->images, taps = d->kernel[0] * d->kernel[1] * d->channels;
    int64_t row = d->width * d->channels, source = d->sources == 1 ? 0 : r;
    const real *x = own->x + (source * d->images + image) * d->height * row;
    real *y = own->y + (r * d->images + image) * d->output[0] * d->output[1] * d->channels;
    for (int64_t i = strip * own->rows; i < least((strip + 1) * own->rows, d->output[0]); i++) {
        int64_t up, down;
        taps_met(i, d->stride[0], d->before[0], d->dilation[0], d->height, d->kernel[0], &up, &down);
        int64_t met = i * d->stride[0] - d->before[0] + up * d->dilation[0];
        filter_row(d, x + met * row, up, down, own->w + r * taps, d->channels,
                   own->bias ? own->bias + r * d->channels : NULL,
                   y + i * d->output[1] * d->channels);
    }
}

/* Rows of outputs in a tile: some 64 KiB of them, or the whole image. */
static int64_t rows_of_tile(int64_t rows, int64_t row) {
    return most(1, least(rows, ((int64_t)1 << 14) / most(1, row)));
}

EXPORT int depthwise(const real *x, const real *w, const real *bias, const struct depthwise *d,
                     real *y, int64_t threads) {
    int64_t rows = rows_of_tile(d->output[0], d->output[1] * d->channels);
    struct depthwise_job job = {d, x, w, bias, y, rows, divide_up(d->output[0], rows)};
    return run_tiles(depthwise_tile, &job, d->replicas * d->images * job.strips, 0, threads);
}

/* --- the gradient with respect to x --------------------------------------------------------

     ∂x[r,n,a,b,c] = Σ g[r,n,i,j,c] · w[r,u,v,c]   over all i·s + u·d − p = a, j·s + v·d − p = b */

/* Taps of an axis through which a pixel is met by an output; returns how many. */
static int64_t met_by(int64_t pixel, int64_t stride, int64_t before, int64_t dilation,
                      int64_t kernel, int64_t outputs, int64_t *taps, int64_t *places) {
    int64_t count = 0;
    for (int64_t k = 0; k < kernel; k++) {
        int64_t place = pixel + before - k * dilation;
        if (place >= 0 && place % stride == 0 && place / stride < outputs) {
            taps[count] = k;
            places[count++] = place / stride;
        }
    }
    return count;
}

static void depthwise_input_tile(const void *job, int64_t tile, char *scratch) {
    const struct depthwise_job *own = job;
    const struct depthwise *d = own->d;
    int64_t strip = tile % own->strips, image = tile / own->strips % d->images;
    int64_t r = tile / own->strips / d->images, channels = d->channels, columns = d->kernel[1];
    const real *w = own->w + r * d->kernel[0] * columns * channels;
    const real *g = own->x + (r * d->images + image) * d->output[0] * d->output[1] * channels;
    real *y = own->y + (r * d->images + image) * d->height * d->width * channels;
    int64_t *us = (int64_t *)scratch, *is = us + d->kernel[0];
    int64_t *vs = is + d->kernel[0], *js = vs + columns;
    for (int64_t a = strip * own->rows; a < least((strip + 1) * own->rows, d->height); a++) {
        int64_t rows = met_by(a, d->stride[0], d->before[0], d->dilation[0], d->kernel[0],
                              d->output[0], us, is);
        for (int64_t b = 0; b < d->width; b++) {
            real *out = y + (a * d->width + b) * channels;
            int64_t taps = met_by(b, d->stride[1], d->before[1], d->dilation[1], columns,
                                  d->output[1], vs, js);
            EACH_VECTOR(c, some, channels, {
                vec sum = {0};
                for (int64_t k = 0; k < rows; k++)
                    for (int64_t l = 0; l < taps; l++)
                        sum += load_some(g + (is[k] * d->output[1] + js[l]) * channels + c, some) *
                               load_some(w + (us[k] * columns + vs[l]) * channels + c, some);
                store_some(out + c, sum, some);
            });
        }
    }
}

EXPORT int depthwise_input_gradient(const real *g, const real *w, const struct depthwise *d,
                                    real *x_gradient, int64_t threads) {
    int64_t rows = rows_of_tile(d->height, d->width * d->channels);
    struct depthwise_job job = {d, g, w, NULL, x_gradient, rows, divide_up(d->height, rows)};
    size_t scratch = 2 * (d->kernel[0] + d->kernel[1]) * sizeof(int64_t);
    return run_tiles(depthwise_input_tile, &job, d->replicas * d->images * job.strips, scratch,
                     threads);
}

/* --- the gradient with respect to w --------------------------------------------------------

     ∂w[r,u,v,c] = Σ_nij g[r,n,i,j,c] · x[r, n, i·s + u·d − p, j·s + v·d − p, c]

   A row of outputs, or some short ones, are added up in `real`; these sums in double. */

#define LONG 128 /* outputs in some short rows */

struct depthwise_weight_job {
    const struct depthwise *d;
    const real *x, *g;
    double *partial; /* (parts, R, kh, kw, C) */
    int64_t parts;
};

/* total[c] += Σ_j g[j·g_step + c] · x[j·step + c] over `count` outputs */
static void add_products(const real *x, int64_t step, const real *g, int64_t g_step,
                         int64_t count, int64_t channels, double *total) {
    if (count <= 0)
        return;
    EACH_VECTOR(c, some, channels, {
        vec sum = {0};
        for (int64_t j = 0; j < count; j++)
            sum += load_some(x + j * step + c, some) * load_some(g + j * g_step + c, some);
        add_to_doubles(total + c, sum, some);
    });
}

/* The same for all 3 × 3 taps at once, over `rows` rows of `count` outputs whose taps all meet
   pixels, in one vector of channels. */
INLINE void add_products_3x3(
    const real *x, int64_t next_row, int64_t row, int64_t pixel, int64_t step, const real *g,
    int64_t g_row, int64_t rows, int64_t count, int64_t channels, const int64_t some, double *total) {
    vec sum[9];
    UNROLL for (int k = 0; k < 9; k++) sum[k] = (vec){0};
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < count; j++) {
            vec own = load_some(g + i * g_row + j * channels, some);
            const real *met = x + i * next_row + j * step;
            UNROLL for (int k = 0; k < 9; k++)
                sum[k] += load_some(met + k / 3 * row + k % 3 * pixel, some) * own;
        }
    UNROLL for (int k = 0; k < 9; k++) add_to_doubles(total + k * channels, sum[k], some);
}

static void depthwise_weight_tile(const void *job, int64_t tile, char *scratch) {
    const struct depthwise_weight_job *own = job;
    const struct depthwise *d = own->d;
    int64_t part = tile / d->replicas, r = tile % d->replicas, channels = d->channels;
    int64_t taps = d->kernel[0] * d->kernel[1] * channels, source = d->sources == 1 ? 0 : r;
    int64_t row = d->width * channels, out_row = d->output[1] * channels;
    double *total = own->partial + tile * taps;
    memset(total, 0, taps * sizeof *total);
    int64_t stride = d->stride[1], before = d->before[1], dilation = d->dilation[1];
    int64_t inner, end, ignored; /* outputs inner … end−1: all their taps meet pixels */
    outputs_met(0, stride, before, dilation, d->width, d->output[1], &inner, &ignored);
    outputs_met(d->kernel[1] - 1, stride, before, dilation, d->width, d->output[1], &ignored, &end);
    int64_t highest; /* and so do those of rows before this one, but the first ones */
    outputs_met(d->kernel[0] - 1, d->stride[0], d->before[0], d->dilation[0], d->height,
                d->output[0], &ignored, &highest);
    int64_t all = d->images * d->output[0]; /* rows of outputs: part `part` takes its share */
    int64_t stop = (part + 1) * all / own->parts, summed = 0; /* rows before `summed` are */
    for (int64_t k = part * all / own->parts; k < stop; k++) {
        int64_t image = k / d->output[0], i = k % d->output[0], up, down;
        const real *x = own->x + (source * d->images + image) * d->height * row;
        const real *g = own->g + ((r * d->images + image) * d->output[0] + i) * out_row;
        taps_met(i, d->stride[0], d->before[0], d->dilation[0], d->height, d->kernel[0], &up, &down);
        int64_t top = i * d->stride[0] - d->before[0];
        int fused = d->kernel[0] == 3 && d->kernel[1] == 3 && up == 0 && down == 3 && inner < end;
        if (fused && k >= summed) { /* this row, and those below it that are fused too */
            int64_t rows = least(least(highest - i, stop - k), most(1, LONG / (end - inner)));
            const real *met = x + top * row + (inner * stride - before) * channels;
            const real *inner_g = g + inner * channels;
            EACH_VECTOR(c, some, channels,
                        add_products_3x3(met + c, d->stride[0] * row, d->dilation[0] * row,
                                         dilation * channels, stride * channels, inner_g + c, out_row,
                                         rows, end - inner, channels, some, total + c));
            summed = k + rows;
        }
        for (int64_t u = up; u < down; u++)
            for (int64_t v = 0; v < d->kernel[1]; v++) {
                int64_t first, last;
                outputs_met(v, stride, before, dilation, d->width, d->output[1], &first, &last);
                const real *met = x + (top + u * d->dilation[0]) * row +
                                  (v * dilation - before) * channels;
                int64_t step = stride * channels;
                double *sum = total + (u * d->kernel[1] + v) * channels;
                add_products(met + first * step, step, g + first * channels, channels,
                             (fused ? inner : last) - first, channels, sum);
                if (fused) /* the inner outputs are done */
                    add_products(met + end * step, step, g + end * channels, channels, last - end,
                                 channels, sum);
            }
    }
}

struct depthwise_sum_job {
    const double *partial;
    real *total;
    int64_t parts, size;
};

#define SUM_BLOCK 4096

static void depthwise_sum_tile(const void *job, int64_t tile, char *scratch) {
    const struct depthwise_sum_job *own = job;
    for (int64_t k = tile * SUM_BLOCK; k < least((tile + 1) * SUM_BLOCK, own->size); k++) {
        double sum = 0;
        for (int64_t part = 0; part < own->parts; part++)
            sum += own->partial[part * own->size + k];
        own->total[k] = sum;
    }
}

/* partial   (parts, R, kh, kw, C), for intermediate results */
EXPORT int depthwise_weight_gradient(const real *x, const real *g, const struct depthwise *d,
                                     double *partial, int64_t parts, real *w_gradient,
                                     int64_t threads) {
    struct depthwise_weight_job job = {d, x, g, partial, parts};
    if (run_tiles(depthwise_weight_tile, &job, parts * d->replicas, 0, threads))
        return -1;
    int64_t size = d->replicas * d->kernel[0] * d->kernel[1] * d->channels;
    struct depthwise_sum_job sum = {partial, w_gradient, parts, size};
    return run_tiles(depthwise_sum_tile, &sum, divide_up(size, SUM_BLOCK), 0, threads);
}
