/* Convolution, by its definition:

     y[r,n,i,j,o] = f( b[r,o] + Σ_uvc x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c,o] )

   A window's numbers are not copied into a row. A tile's pixels are copied once, with a border
   of zeros, and `product` reads each window where it lies: one run for each row of the window. */

struct windows {
    int64_t sources, replicas, images; /* sources: 1 where all replicas see the same images */
    int64_t height, width, channels;
    int64_t kernel[2], stride[2], before[2], after[2], dilation[2]; /* padding before, after */
    int64_t output[2], out_channels;
    int64_t pool[2]; /* the window of max pooling; 1, 1 for none */
    int64_t activation;
    int64_t tile_bytes; /* of input and output in a tile */
};

#define LEAST_TILES 8          /* of a job with enough to do: every thread gets some */
#define ENOUGH_WORK (1 << 17)  /* multiplications: less is done before a helper has woken up */

/* How the outputs of a job are cut into tiles: some images, or some rows of one image; and, where
   that makes few tiles, some columns of the product. */
struct cut {
    int64_t images, rows;           /* in a tile */
    int64_t blocks, strips, parts;  /* tiles: of images, of rows, of columns */
    int64_t tiles;
    int64_t part_vectors;           /* columns in a part, whole panels */
};

static int64_t window_size(const struct windows *w) {
    return w->kernel[0] * w->kernel[1] * w->channels;
}

/* Pixels of the input, along one axis, behind `count` outputs. */
static int64_t behind(const struct windows *w, int axis, int64_t count) {
    return (count - 1) * w->stride[axis] + (w->kernel[axis] - 1) * w->dilation[axis] + 1;
}

static struct cut cut_outputs(const struct windows *w, int by_columns) {
    struct cut cut;
    int64_t high = w->output[0], wide = w->output[1];
    int64_t row_bytes = sizeof(real) * (w->stride[0] * behind(w, 1, wide) * w->channels +
                                        wide * w->out_channels);
    int64_t fitting = most(1, w->tile_bytes / most(1, row_bytes));
    int64_t vectors = divide_up(w->out_channels, VL);
    cut.rows = most(w->pool[0], least(high, fitting) / w->pool[0] * w->pool[0]);
    if (cut.rows > high - w->pool[0])
        cut.rows = high;
    cut.images = cut.rows < high ? 1 : most(1, least(fitting / high, w->images / LEAST_TILES));
    cut.blocks = divide_up(w->images, cut.images);
    /* Few images: cut into rows, though not into fewer than some blocks of products. */
    int64_t wanted = divide_up(LEAST_TILES, most(1, cut.blocks * w->replicas));
    int64_t enough = divide_up(2 * MR, wide);
    int64_t rows = round_up(most(divide_up(high, wanted), enough), w->pool[0]);
    cut.rows = least(cut.rows, rows);
    cut.strips = divide_up(high, cut.rows);
    wanted = divide_up(LEAST_TILES, most(1, cut.blocks * w->replicas * cut.strips));
    if (!by_columns)
        wanted = 1;
    cut.part_vectors = whole_panels(divide_up(vectors, wanted), vectors);
    cut.parts = most(1, divide_up(vectors, cut.part_vectors));
    cut.tiles = w->replicas * cut.blocks * cut.strips * cut.parts;
    return cut;
}

/* One tile: which network, images, rows and columns. */
struct place {
    int64_t replica, part;
    int64_t image, images; /* the first, how many */
    int64_t row, rows;
};

static struct place place_of(const struct windows *w, const struct cut *cut, int64_t tile) {
    struct place at;
    at.part = tile % cut->parts;
    tile /= cut->parts;
    int64_t strip = tile % cut->strips, block = tile / cut->strips % cut->blocks;
    at.replica = tile / cut->strips / cut->blocks;
    at.image = block * cut->images;
    at.images = least(cut->images, w->images - at.image);
    at.row = strip * cut->rows;
    at.rows = least(cut->rows, w->output[0] - at.row);
    return at;
}

/* The pixels behind a tile: where they begin, and the steps to the next image and row. */
struct pixels {
    const real *start;
    int64_t image, row;
};

/* Copy `rows` × `columns` pixels of an image from (top, left) on; zero where there is none. */
static void copy_with_border(const real *image, int64_t height, int64_t width, int64_t channels,
                             int64_t top, int64_t left, int64_t rows, int64_t columns, real *to) {
    int64_t first = least(most(0, -left), columns);
    int64_t last = most(first, least(columns, width - left));
    for (int64_t i = 0; i < rows; i++, to += columns * channels) {
        int64_t row = top + i;
        if (row < 0 || row >= height) {
            memset(to, 0, columns * channels * sizeof(real));
            continue;
        }
        memset(to, 0, first * channels * sizeof(real));
        if (last > first)
            memcpy(to + first * channels, image + (row * width + left + first) * channels,
                   (last - first) * channels * sizeof(real));
        memset(to + last * channels, 0, (columns - last) * channels * sizeof(real));
    }
}

static int has_border(const struct windows *w) {
    return w->before[0] || w->before[1] || w->after[0] || w->after[1];
}

/* The pixels behind a tile with their border: copied where there is a border. */
static struct pixels pixels_behind(const struct windows *w, struct place at, const real *x,
                                   char **scratch) {
    int64_t source = w->sources == 1 ? 0 : at.replica;
    int64_t size = w->height * w->width * w->channels;
    const real *images = x + (source * w->images + at.image) * size;
    if (!has_border(w))
        return (struct pixels){images + at.row * w->stride[0] * w->width * w->channels, size,
                               w->width * w->channels};
    int64_t rows = behind(w, 0, at.rows), columns = behind(w, 1, w->output[1]);
    int64_t padded = rows * columns * w->channels;
    real *copy = carve(scratch, at.images * padded * sizeof(real));
    for (int64_t n = 0; n < at.images; n++)
        copy_with_border(images + n * size, w->height, w->width, w->channels,
                         at.row * w->stride[0] - w->before[0], -w->before[1], rows, columns,
                         copy + n * padded);
    return (struct pixels){copy, padded, columns * w->channels};
}

static size_t pixels_bytes(const struct windows *w, const struct cut *cut) {
    if (!has_border(w))
        return 0;
    return 64 + sizeof(real) * cut->images * behind(w, 0, cut->rows) *
                    behind(w, 1, w->output[1]) * w->channels;
}

/* A window as runs of memory: one for each of its rows, or for each tap where taps are apart. */
static struct runs runs_of(const struct windows *w, struct pixels pixels, char **scratch) {
    int64_t *offset = carve(scratch, w->kernel[0] * w->kernel[1] * sizeof *offset);
    struct runs runs = {offset, 0, w->channels, 1};
    int64_t down = w->dilation[0] * pixels.row, right = w->dilation[1] * w->channels;
    if (w->dilation[1] == 1) {
        runs.length = w->kernel[1] * w->channels;
        for (; runs.count < w->kernel[0]; runs.count++) offset[runs.count] = runs.count * down;
        return runs;
    }
    for (int64_t u = 0; u < w->kernel[0]; u++)
        for (int64_t v = 0; v < w->kernel[1]; v++)
            offset[runs.count++] = u * down + v * right;
    return runs;
}

/* The first pixel of every window of a tile; the last one again and again, up to whole blocks. */
static const real **window_starts(const struct windows *w, struct place at, struct pixels pixels,
                                  char **scratch) {
    int64_t count = at.images * at.rows * w->output[1], q = 0;
    const real **starts = carve(scratch, round_up(count, MR) * sizeof *starts);
    for (int64_t n = 0; n < at.images; n++)
        for (int64_t i = 0; i < at.rows; i++) {
            const real *row = pixels.start + n * pixels.image + i * w->stride[0] * pixels.row;
            for (int64_t j = 0; j < w->output[1]; j++)
                starts[q++] = row + j * w->stride[1] * w->channels;
        }
    repeat_last(starts, count);
    return starts;
}

/* Of every window of `x` (rows × columns windows in reading order) the largest value, and which it
   was; among equals the first, and a NaN is larger than all. Then bias and activation. */
static void keep_largest(const real *x, int64_t row, int64_t pixel, const int64_t window[2],
                         int64_t count, int64_t channels, const real *bias, int64_t activation,
                         real *y, uint8_t *winners, int64_t y_pixel) {
    for (int64_t j = 0; j < count; j++)
        for (int64_t c = 0; c < channels; c += VL) {
            const real *first = x + j * window[1] * pixel + c;
            vec largest = load(first);
            vec_mask winner = {0};
            for (int64_t u = 0, number = 0; u < window[0]; u++)
                for (int64_t v = 0; v < window[1]; v++, number++) {
                    vec value = load(first + u * row + v * pixel);
                    vec_mask later = value > largest;
                    winner = (winner & ~later) | (later & ((whole)number - (vec_mask){0}));
                    largest = chosen(later | (value != value), value, largest);
                }
            if (bias)
                largest += load(bias + c);
            store_some(y + j * y_pixel + c, activated(largest, activation), channels - c);
            vec_bytes bytes = __builtin_convertvector(winner, vec_bytes);
            memcpy(winners + j * y_pixel + c, &bytes, least(VL, channels - c));
        }
}

struct convolve_job {
    struct windows w;
    struct cut cut;
    const real *x;
    const real *packed; /* weights of each network, panel by panel */
    const real *bias;   /* of each network, filled up to whole vectors, or NULL */
    real *y;
    uint8_t *winners;
};

static void convolve_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct convolve_job *job = pointer;
    const struct windows *w = &job->w;
    struct place at = place_of(w, &job->cut, tile);
    struct pixels pixels = pixels_behind(w, at, job->x, &scratch);
    struct runs runs = runs_of(w, pixels, &scratch);
    const real **starts = window_starts(w, at, pixels, &scratch);
    int64_t size = window_size(w), width = round_up(w->out_channels, VL);
    int64_t count = at.images * at.rows * w->output[1];
    int64_t first = at.part * job->cut.part_vectors * VL;
    int64_t columns = least(w->out_channels - first, job->cut.part_vectors * VL);
    const real *packed = job->packed + at.replica * size * width + size * first;
    const real *bias = job->bias ? job->bias + at.replica * width + first : NULL;
    const int pooled = job->winners != NULL;
    int64_t image = at.replica * w->images + at.image;
    int64_t pixels_in_all = w->replicas * w->images * w->output[0] * w->output[1];
    struct results to = {.ldc = w->out_channels, .bias = bias, .activation = w->activation,
                         .far = lies_far(job->y, pixels_in_all, w->out_channels)};
    real *y = job->y + (image * w->output[0] + at.row) * w->output[1] * w->out_channels + first;
    if (pooled) {
        to = (struct results){.ldc = round_up(columns, VL)};
        y = carve(&scratch, count * to.ldc * sizeof(real));
    }
    EACH_PANEL(v, vectors, columns) {
        to.columns = columns - v * VL;
        to.bias = pooled || !bias ? NULL : bias + v * VL;
        for (int64_t q = 0; q < count; q += MR) {
            to.c = y + q * to.ldc + v * VL;
            to.rows = count - q;
            product(starts + q, runs, packed + size * v * VL, vectors * VL, to, vectors);
        }
    }
    if (!pooled)
        return;
    int64_t high = w->output[0] / w->pool[0], wide = w->output[1] / w->pool[1];
    for (int64_t n = 0; n < at.images; n++)
        for (int64_t i = 0; i < at.rows / w->pool[0]; i++) {
            int64_t out = ((image + n) * high + at.row / w->pool[0] + i) * wide * w->out_channels;
            const real *rows = y + (n * at.rows + i * w->pool[0]) * w->output[1] * to.ldc;
            keep_largest(rows, w->output[1] * to.ldc, to.ldc, w->pool, wide, columns, bias,
                         w->activation, job->y + out + first, job->winners + out + first,
                         w->out_channels);
        }
}

struct pack_job {
    const real *w;
    real *packed;
    int64_t rows, columns, panels; /* of one network; panels of WIDEST vectors at most */
    int64_t transposed;            /* taps, if the kernels are to be flipped and transposed */
};

/* Lay one panel of one network's weights out. */
static void pack_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct pack_job *job = pointer;
    int64_t number = 0, panel = tile % job->panels, r = tile / job->panels;
    const real *w = job->w + r * job->rows * job->columns;
    real *packed = job->packed + r * job->rows * round_up(job->columns, VL);
    (void)scratch;
    EACH_PANEL(v, vectors, job->columns) {
        if (number++ != panel)
            continue;
        int64_t taps = job->transposed ? job->transposed : 1, rows = job->rows / taps;
        for (int64_t tap = 0; tap < taps; tap++) {
            /* w[tap, o, c] of the flipped kernel: a column is a channel of the input */
            const real *from = job->transposed
                                   ? w + (taps - 1 - tap) * rows * job->columns + v * VL * rows
                                   : w + v * VL;
            pack_panel(from, job->transposed ? 1 : job->columns, job->transposed ? rows : 1, rows,
                       job->columns - v * VL, vectors,
                       packed + job->rows * v * VL + tap * rows * vectors * VL);
        }
    }
}

static int64_t count_panels(int64_t columns) {
    int64_t count = 0;
    EACH_PANEL(v, vectors, columns) count++;
    return count;
}

/* Bias rows of each network, filled up with zeros to whole vectors. */
static real *fill_up(const real *rows, int64_t count, int64_t columns, char **memory) {
    int64_t width = round_up(columns, VL);
    real *filled = carve(memory, count * width * sizeof(real));
    memset(filled, 0, count * width * sizeof(real));
    for (int64_t r = 0; r < count; r++)
        memcpy(filled + r * width, rows + r * columns, columns * sizeof(real));
    return filled;
}

/* x (1 | R, N, H, W, C), w (R, kh, kw, C, O), bias (R, O) or NULL, y (R, N, OH, OW, O); with
   winners (like y) what stays of max pooling. transposed: w is (R, kh, kw, O, C), flipped. */
EXPORT int convolve(const real *x, const real *weights, const real *bias, real *y,
                    uint8_t *winners, const struct windows *w, int64_t transposed,
                    int64_t threads) {
    struct convolve_job job = {.w = *w, .x = x, .y = y, .winners = winners};
    int64_t size = window_size(w), width = round_up(w->out_channels, VL);
    char *memory = own_memory(FOR_JOB, w->replicas * (size + 1) * width * sizeof(real) + 128);
    if (!memory)
        return -1;
    real *packed = carve(&memory, w->replicas * size * width * sizeof(real));
    job.packed = packed;
    job.bias = bias ? fill_up(bias, w->replicas, w->out_channels, &memory) : NULL;
    job.cut = cut_outputs(w, 1);
    int64_t pixels = w->images * w->output[0] * w->output[1];
    if (pixels * size * w->out_channels * w->replicas < ENOUGH_WORK)
        threads = 1;
    struct pack_job pack = {weights, packed, size, w->out_channels, count_panels(w->out_channels),
                            transposed ? w->kernel[0] * w->kernel[1] : 0};
    int64_t panels = w->replicas * pack.panels;
    if (run_tiles(pack_tile, &pack, panels, 0, size * width < (1 << 16) ? 1 : threads))
        return -1;
    int64_t count = job.cut.images * job.cut.rows * w->output[1];
    size_t bytes = pixels_bytes(w, &job.cut) + 4 * 64 +
                   w->kernel[0] * w->kernel[1] * sizeof(int64_t) +
                   (count + MR) * sizeof(real *);
    if (winners)
        bytes += count * round_up(least(width, job.cut.part_vectors * VL), VL) * sizeof(real);
    return run_tiles(convolve_tile, &job, job.cut.tiles, bytes, threads);
}

/* --- the gradient with respect to w --------------------------------------------------------

     dw[r,u,v,c,o] = Σ_nij x[r, n, i·s + u·d − p, j·s + v·d − p, c] · g[r,n,i,j,o]

   A product again, in which a row is one number of the window, and k runs over the outputs.
   Tiles are dealt to lanes; a lane adds up its own tiles one after another, and the lanes' sums
   are added last: an order that no thread can change. */

#define MOST_LANES 16

static int64_t count_lanes(const struct windows *w, const struct cut *cut) {
    int64_t tiles = cut->blocks * cut->strips;
    return most(1, least(tiles, MOST_LANES / most(1, w->replicas)));
}

struct weight_job {
    struct windows w;
    struct cut cut;
    int64_t lanes;
    const real *x, *g;
    real *sums; /* (R, lanes, kh·kw·C, whole vectors) */
};

static void weight_tile(const struct weight_job *job, int64_t tile, int add, real *sums,
                        char *scratch) {
    const struct windows *w = &job->w;
    struct place at = place_of(w, &job->cut, tile);
    struct pixels pixels = pixels_behind(w, at, job->x, &scratch);
    int64_t size = window_size(w), width = round_up(w->out_channels, VL);
    int64_t count = at.images * at.rows * w->output[1], rows = at.images * at.rows;
    const real **taps = carve(&scratch, round_up(size, MR) * sizeof *taps);
    int64_t *offset = carve(&scratch, rows * sizeof *offset), q = 0;
    for (int64_t u = 0; u < w->kernel[0]; u++)
        for (int64_t v = 0; v < w->kernel[1]; v++)
            for (int64_t c = 0; c < w->channels; c++)
                taps[q++] = pixels.start + u * w->dilation[0] * pixels.row +
                            v * w->dilation[1] * w->channels + c;
    repeat_last(taps, size);
    for (int64_t n = 0; n < at.images; n++)
        for (int64_t i = 0; i < at.rows; i++)
            offset[n * at.rows + i] = n * pixels.image + i * w->stride[0] * pixels.row;
    struct runs runs = {offset, rows, w->output[1], w->stride[1] * w->channels};
    int64_t first = ((at.replica * w->images + at.image) * w->output[0] + at.row) * w->output[1];
    const real *g = job->g + first * w->out_channels;
    EACH_PANEL(v, vectors, w->out_channels) {
        int64_t columns = w->out_channels - v * VL, step = w->out_channels;
        const real *panel = g + v * VL;
        if (columns < vectors * VL) { /* vectors would reach into the next row */
            real *copy = (real *)scratch;
            pack_panel(panel, step, 1, count, columns, vectors, copy);
            panel = copy;
            step = vectors * VL;
        }
        for (int64_t k = 0; k < size; k += MR) {
            struct results to = {.c = sums + k * width + v * VL, .ldc = width, .rows = size - k,
                                 .columns = vectors * VL, .add = add};
            product(taps + k, runs, panel, step, to, vectors);
        }
    }
}

static void weight_lane(const void *pointer, int64_t number, char *scratch) {
    const struct weight_job *job = pointer;
    int64_t replica = number / job->lanes, lane = number % job->lanes;
    int64_t tiles = job->cut.blocks * job->cut.strips;
    int64_t size = window_size(&job->w) * round_up(job->w.out_channels, VL);
    real *sums = job->sums + number * size;
    if (lane >= tiles)
        memset(sums, 0, size * sizeof(real));
    for (int64_t tile = lane; tile < tiles; tile += job->lanes)
        weight_tile(job, replica * tiles + tile, tile != lane, sums, scratch);
}

struct lanes_job {
    const real *sums;
    real *result;
    int64_t lanes, rows, columns; /* (R, lanes, rows, whole vectors) → (R, rows, columns) */
};

/* One row of the result: the sum over the lanes. */
static void add_lanes(const void *pointer, int64_t tile, char *scratch) {
    const struct lanes_job *job = pointer;
    int64_t replica = tile / job->rows, row = tile % job->rows;
    int64_t width = round_up(job->columns, VL);
    const real *first = job->sums + (replica * job->lanes * job->rows + row) * width;
    (void)scratch;
    for (int64_t o = 0; o < job->columns; o += VL) {
        vec sum = load(first + o);
        for (int64_t lane = 1; lane < job->lanes; lane++)
            sum += load(first + lane * job->rows * width + o);
        store_some(job->result + tile * job->columns + o, sum, job->columns - o);
    }
}

/* x (1 | R, N, H, W, C), g (R, N, OH, OW, O), result (R, kh, kw, C, O) */
EXPORT int convolve_weight_gradient(const real *x, const real *g, real *result,
                                    const struct windows *w, int64_t threads) {
    struct weight_job job = {.w = *w, .x = x, .g = g, .cut = cut_outputs(w, 0)};
    int64_t size = window_size(w), width = round_up(w->out_channels, VL);
    int64_t count = job.cut.images * job.cut.rows * w->output[1];
    job.lanes = count_lanes(w, &job.cut);
    job.sums = (real *)own_memory(FOR_JOB, w->replicas * job.lanes * size * width * sizeof(real));
    if (!job.sums)
        return -1;
    if (w->images * w->output[0] * w->output[1] * size * w->out_channels * w->replicas <
        ENOUGH_WORK)
        threads = 1;
    size_t bytes = pixels_bytes(w, &job.cut) + 4 * 64 + (size + MR) * sizeof(real *) +
                   job.cut.images * job.cut.rows * sizeof(int64_t) +
                   count * WIDEST * VL * sizeof(real);
    if (run_tiles(weight_lane, &job, w->replicas * job.lanes, bytes, threads))
        return -1;
    struct lanes_job add = {job.sums, result, job.lanes, size, w->out_channels};
    return run_tiles(add_lanes, &add, w->replicas * size, 0,
                     size * width * job.lanes < (1 << 15) ? 1 : threads);
}

/* --- the gradient with respect to x, for any stride ----------------------------------------

   The share of tap (u, v) of window (i, j) is Σ_o g[r,n,i,j,o] · w[r,u,v,c,o]: a product, whose
   results are added where the window lay. A tile is one image, for windows overlap. */

struct input_job {
    struct windows w;
    const real *g, *packed; /* packed: wᵀ of each network, (O, kh·kw·C) in panels */
    real *result;
};

static void input_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct input_job *job = pointer;
    const struct windows *w = &job->w;
    int64_t size = window_size(w), width = round_up(size, VL), inner = w->out_channels, zero = 0;
    int64_t wide = w->output[1], channels = w->channels;
    const real *packed = job->packed + tile / w->images * inner * width;
    const real *g = job->g + tile * w->output[0] * wide * inner;
    real *image = job->result + tile * w->height * w->width * channels;
    real *shares = (real *)scratch;
    struct runs runs = {&zero, 1, inner, 1};
    memset(image, 0, w->height * w->width * channels * sizeof(real));
    for (int64_t i = 0; i < w->output[0]; i++, g += wide * inner) {
        EACH_PANEL(v, vectors, size)
            for (int64_t j = 0; j < wide; j += MR) {
                const real *rows[MR];
                for (int64_t m = 0; m < MR; m++) rows[m] = g + least(j + m, wide - 1) * inner;
                struct results to = {.c = shares + j * width + v * VL, .ldc = width,
                                     .rows = wide - j, .columns = vectors * VL};
                product(rows, runs, packed + inner * v * VL, vectors * VL, to, vectors);
            }
        for (int64_t u = 0; u < w->kernel[0]; u++) {
            int64_t row = i * w->stride[0] + u * w->dilation[0] - w->before[0];
            if (row < 0 || row >= w->height)
                continue;
            for (int64_t j = 0; j < wide; j++)
                for (int64_t v = 0; v < w->kernel[1]; v++) {
                    int64_t column = j * w->stride[1] + v * w->dilation[1] - w->before[1];
                    if (column < 0 || column >= w->width)
                        continue;
                    real *pixel = image + (row * w->width + column) * channels;
                    const real *share = shares + j * width + (u * w->kernel[1] + v) * channels;
                    for (int64_t c = 0; c < channels; c++) pixel[c] += share[c];
                }
        }
    }
}

/* g (R, N, OH, OW, O), weights (R, kh, kw, C, O), result (R, N, H, W, C) */
EXPORT int convolve_input_gradient(const real *g, const real *weights, real *result,
                                   const struct windows *w, int64_t threads) {
    struct input_job job = {.w = *w, .g = g, .result = result};
    int64_t size = window_size(w), width = round_up(size, VL);
    real *packed = (real *)own_memory(FOR_JOB, w->replicas * w->out_channels * width *
                                                   sizeof(real));
    if (!packed)
        return -1;
    job.packed = packed;
    struct pack_job pack = {weights, packed, w->out_channels, size, count_panels(size), 1};
    if (run_tiles(pack_tile, &pack, w->replicas * pack.panels, 0, 1))
        return -1;
    int64_t work = w->replicas * w->images * w->output[0] * w->output[1] * size * w->out_channels;
    return run_tiles(input_tile, &job, w->replicas * w->images,
                     w->output[1] * width * sizeof(real), work < ENOUGH_WORK ? 1 : threads);
}
