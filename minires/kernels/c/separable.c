/* Separable convolutions at prediction: pointwise, depthwise, pointwise in one pass.

   An inverted residual (MobileNetV2) has six times as many channels within as before and behind,
   five megabytes an image at 112 × 112 pixels. A tile is some rows of outputs, or some small
   images: a thread computes the wide rows behind them, filters these, projects them, and goes on.
   What is wide never leaves the cache. Wide rows that two tiles of one image need are computed
   twice, which costs less than waiting for one another.

   A few small images make few such tiles. Then each tile has a part of the wide channels, and the
   parts' projections are added up at the end. */

#define LEAST_PART 6 /* vectors of wide channels in a part */
#define SUM_PIXELS 64

struct separable {
    int64_t sources, replicas, images; /* sources: 1 where all replicas see the same images */
    int64_t height, width, channels, wide, out_channels;
    int64_t expands; /* 0: wide = channels, x is filtered itself */
    int64_t kernel[2], stride[2], before[2], output[2];
    int64_t activations[3]; /* after each of the three */
    int64_t tile_bytes;     /* of wide numbers in a tile */
};

struct separable_job {
    const struct separable *s;
    struct depthwise filters;      /* the convolution in the middle */
    const real *x, *taps, *taps_bias;
    const real *expand, *expand_bias, *project, *project_bias; /* packed */
    real *y;
    int64_t rows, strips;          /* of outputs in a tile; tiles of an image */
    int64_t together, blocks;      /* images in a tile; tiles of a batch of small images */
    int64_t parts, part;           /* of the wide channels; how many one has */
    real *partial;                 /* (parts, R, N, OH, OW, O) where there are several */
};

/* c[m, o] = f( bias[o] + Σ_k a[m, k] · b[first + k, o] ) for `count` rows, k < size; b (rows, ·)
   and bias are packed. */
static void multiply_rows(const real *a, int64_t count, int64_t size, const real *b, int64_t rows,
                          int64_t first, const real *bias, int64_t columns, int64_t activation,
                          real *c) {
    const int64_t nowhere = 0;
    const struct runs runs = {&nowhere, 1, size, 1};
    EACH_PANEL(v, vectors, columns) {
        struct results to = {.ldc = columns, .columns = columns - v * VL,
                             .bias = bias ? bias + v * VL : NULL, .activation = activation};
        const real *panel = b + rows * v * VL + first * vectors * VL;
        for (int64_t q = 0; q < count; q += MR) {
            const real *row[MR];
            for (int64_t m = 0; m < MR; m++) row[m] = a + least(q + m, count - 1) * size;
            to.c = c + q * columns + v * VL;
            to.rows = count - q;
            product(row, runs, panel, vectors * VL, to, vectors);
        }
    }
}

/* Rows of the image behind outputs first … last−1 of a strip: top … bottom−1. */
static void rows_behind(const struct separable *s, int64_t first, int64_t last, int64_t *top,
                        int64_t *bottom) {
    int64_t above = first * s->stride[0] - s->before[0];
    int64_t below = (last - 1) * s->stride[0] - s->before[0] + s->kernel[0];
    *top = least(most(above, 0), s->height);
    *bottom = most(*top, least(below, s->height));
}

static void separable_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct separable_job *job = pointer;
    const struct separable *s = job->s;
    struct depthwise d = job->filters;
    int64_t part = tile % job->parts, strip = tile / job->parts % job->strips;
    int64_t block = tile / job->parts / job->strips % job->blocks;
    int64_t r = tile / job->parts / job->strips / job->blocks, source = s->sources == 1 ? 0 : r;
    int64_t image = block * job->together, images = least(job->together, s->images - image);
    int64_t first = strip * job->rows, last = least(first + job->rows, s->output[0]);
    int64_t from = part * job->part, wide = least(job->part, s->wide - from); /* channels */
    int64_t top, bottom;
    rows_behind(s, first, last, &top, &bottom);
    int64_t row = s->width * wide, out_row = s->output[1] * wide, rows = bottom - top;
    const real *x = job->x + ((source * s->images + image) * s->height + top) * s->width * s->channels;
    const real *hidden = x;
    /* A tile has several images only where it has all of their rows: one after another. */
    if (s->expands) {
        int64_t width = round_up(s->wide, VL);
        real *expanded = carve(&scratch, images * rows * row * sizeof(real));
        multiply_rows(x, images * rows * s->width, s->channels,
                      job->expand + r * s->channels * width + s->channels * from, s->channels, 0,
                      job->expand_bias + r * width + from, wide, s->activations[0], expanded);
        hidden = expanded;
    }
    real *filtered = carve(&scratch, images * (last - first) * out_row * sizeof(real));
    real *next = filtered;
    const real *taps = job->taps + r * s->kernel[0] * s->kernel[1] * s->wide + from;
    d.channels = wide;
    for (int64_t n = 0; n < images; n++)
        for (int64_t i = first; i < last; i++, next += out_row) {
            int64_t up, down;
            taps_met(i, d.stride[0], d.before[0], 1, s->height, s->kernel[0], &up, &down);
            int64_t met = i * s->stride[0] - s->before[0] + up - top;
            filter_row(&d, hidden + (n * rows + met) * row, up, down, taps, s->wide,
                       job->taps_bias + r * s->wide + from, next);
        }
    int64_t width = round_up(s->out_channels, VL), whole = job->parts == 1;
    int64_t pixel = ((r * s->images + image) * s->output[0] + first) * s->output[1];
    int64_t pixels = s->replicas * s->images * s->output[0] * s->output[1];
    multiply_rows(filtered, images * (last - first) * s->output[1], wide,
                  job->project + r * s->wide * width, s->wide, from,
                  whole ? job->project_bias + r * width : NULL, s->out_channels,
                  whole ? s->activations[2] : LINEAR,
                  (whole ? job->y : job->partial + part * pixels * s->out_channels) +
                      pixel * s->out_channels);
}

/* y = f( bias + Σ partial ) for some pixels. */
static void add_parts_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct separable_job *job = pointer;
    const struct separable *s = job->s;
    int64_t each = s->images * s->output[0] * s->output[1], pixels = s->replicas * each;
    int64_t channels = s->out_channels;
    (void)scratch;
    for (int64_t p = tile * SUM_PIXELS; p < least((tile + 1) * SUM_PIXELS, pixels); p++) {
        const real *bias = job->project_bias + p / each * round_up(channels, VL);
        EACH_VECTOR(c, some, channels, {
            vec sum = load(bias + c);
            for (int64_t part = 0; part < job->parts; part++)
                sum += load_some(job->partial + (part * pixels + p) * channels + c, some);
            store_some(job->y + p * channels + c, activated(sum, s->activations[2]), some);
        });
    }
}

/* Weights (R, rows, columns), laid out for `product`. */
static const real *packed(const real *w, int64_t replicas, int64_t rows, int64_t columns,
                          char **memory, int64_t threads, int *failed) {
    real *to = carve(memory, replicas * rows * round_up(columns, VL) * sizeof(real));
    struct pack_job job = {w, to, rows, columns, count_panels(columns), 0};
    *failed |= run_tiles(pack_tile, &job, replicas * job.panels, 0,
                         rows * columns < (1 << 16) ? 1 : threads);
    return to;
}

/* expand, expand_bias    (R, C, E) and (R, E), or NULL
   taps, taps_bias        (R, kh, kw, E) and (R, E)
   project, project_bias  (R, E, O) and (R, O) */
EXPORT int separable(const real *x, const real *expand, const real *expand_bias, const real *taps,
                     const real *taps_bias, const real *project, const real *project_bias,
                     const struct separable *s, real *y, int64_t threads) {
    struct separable_job job = {.s = s, .x = x, .taps = taps, .taps_bias = taps_bias, .y = y};
    job.filters = (struct depthwise){
        .width = s->width, .channels = s->wide, .kernel = {s->kernel[0], s->kernel[1]},
        .stride = {s->stride[0], s->stride[1]}, .before = {s->before[0], s->before[1]},
        .dilation = {1, 1}, .output = {s->output[0], s->output[1]},
        .activation = s->activations[1],
    };
    /* Rows of outputs and the wide rows behind them: as many as stay in the cache. */
    int64_t hidden = s->expands ? sizeof(real) * s->width * s->wide : 0;
    int64_t row = sizeof(real) * s->output[1] * s->wide + s->stride[0] * hidden;
    int64_t overlap = most(0, s->kernel[0] - s->stride[0]) * hidden, high = s->output[0];
    int64_t fitting = most(1, (s->tile_bytes - overlap) / most(1, row));
    job.strips = divide_up(high, fitting);
    job.rows = divide_up(high, job.strips);
    job.strips = divide_up(high, job.rows);
    int64_t top, bottom;
    rows_behind(s, 0, high, &top, &bottom);
    const int all_rows = job.strips == 1 && bottom - top == s->height;
    job.together = all_rows ? most(1, least(fitting / high, s->images / LEAST_TILES)) : 1;
    job.blocks = divide_up(s->images, job.together);
    int64_t tiles = s->replicas * job.blocks * job.strips, vectors = divide_up(s->wide, VL);
    int64_t part = vectors;
    if (s->expands && tiles > 0 && tiles < LEAST_TILES)
        part = whole_panels(most(divide_up(vectors * tiles, LEAST_TILES), LEAST_PART), vectors);
    job.parts = most(1, divide_up(vectors, part));
    job.part = job.parts > 1 ? part * VL : s->wide;
    int64_t pixels = s->replicas * s->images * s->output[0] * s->output[1];
    int64_t wide = round_up(s->wide, VL), out = round_up(s->out_channels, VL);
    size_t partial = job.parts > 1 ? job.parts * pixels * s->out_channels * sizeof(real) : 0;
    char *memory = own_memory(FOR_JOB, partial + s->replicas * sizeof(real) * (
        (s->channels + 1) * wide + (s->wide + 1) * out) + 5 * 64);
    if (!memory)
        return -1;
    job.partial = carve(&memory, partial);
    int failed = 0;
    if (s->expands) {
        job.expand_bias = fill_up(expand_bias, s->replicas, s->wide, &memory);
        job.expand = packed(expand, s->replicas, s->channels, s->wide, &memory, threads, &failed);
    }
    job.project_bias = fill_up(project_bias, s->replicas, s->out_channels, &memory);
    job.project = packed(project, s->replicas, s->wide, s->out_channels, &memory, threads, &failed);
    if (failed)
        return -1;
    size_t bytes = job.together * ((job.rows - 1) * s->stride[0] + s->kernel[0]) * hidden +
                   job.together * job.rows * sizeof(real) * s->output[1] * s->wide + 4 * 64;
    if (run_tiles(separable_tile, &job, tiles * job.parts, bytes, threads))
        return -1;
    return job.parts == 1 ? 0 : run_tiles(add_parts_tile, &job, divide_up(pixels, SUM_PIXELS), 0,
                                          threads);
}
