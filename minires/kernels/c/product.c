/* Matrix products, a block of MR × (vectors · VL) results at a time.

   While a block is summed all its sums are in registers: for each of MR rows the processor
   spreads one number over a vector, and multiplies it with the same few vectors of b.

     c[m, o] = Σ_run Σ_k a[m][offset[run] + k · step] · b[k', o]      k' counts all (run, k)

   `a` is MR pointers, wherever they point. So the windows of a convolution need no copying:
   a[m] is a window's first pixel, and a run is one row of the window. */

#if defined __AVX512F__ || defined __aarch64__ /* 32 registers for vectors */
#define MR 8
#define WIDEST 3 /* vectors: 24 sums, 3 of b, 1 of a */
#else
#define MR 6
#define WIDEST 2
#endif

/* Where results go, and what is done to them on the way. */
struct results {
    real *c;
    int64_t ldc;        /* from one row to the next */
    int64_t rows;       /* at most MR; those behind are not written */
    int64_t columns;    /* at most vectors · VL */
    int add;            /* whether to add to what is there */
    const real *bias;   /* of each column, or NULL; as long as the vectors */
    int64_t activation;
    int far;            /* whether `lies_far` says so of the whole result */
};

struct runs {
    const int64_t *offset;
    int64_t count, length, step;
};

INLINE void
block(const real *const *a, struct runs runs, const real *b, int64_t ldb,
      struct results to, const int vectors) {
    vec sum[MR][WIDEST];
    UNROLL for (int m = 0; m < MR; m++)
        UNROLL for (int v = 0; v < vectors; v++) sum[m][v] = (vec){0};
    for (int64_t run = 0; run < runs.count; run++) {
        const real *row[MR];
        UNROLL for (int m = 0; m < MR; m++) row[m] = a[m] + runs.offset[run];
#define MULTIPLY(k_step)                                                        \
    for (int64_t k = 0; k < runs.length; k++, b += ldb) {                       \
        vec of_b[WIDEST];                                                       \
        UNROLL for (int v = 0; v < vectors; v++) of_b[v] = load(b + v * VL);    \
        UNROLL for (int m = 0; m < MR; m++) {                                   \
            vec of_a = spread(row[m][k * k_step]);                              \
            UNROLL for (int v = 0; v < vectors; v++) sum[m][v] += of_a * of_b[v]; \
        }                                                                       \
    }
        if (runs.step == 1)
            MULTIPLY(1)
        else
            MULTIPLY(runs.step)
#undef MULTIPLY
    }
    UNROLL for (int m = 0; m < MR; m++)
        if (m < to.rows)
            UNROLL for (int v = 0; v < vectors; v++) {
                real *c = to.c + m * to.ldc + v * VL;
                int64_t left = to.columns - v * VL;
                vec value = sum[m][v];
                if (to.add)
                    value += load_some(c, left);
                if (to.bias)
                    value += load(to.bias + v * VL);
                value = activated(value, to.activation);
                store_result(c, value, left, to.far);
            }
}

/* One block of results; `b` has whole vectors, also where results end earlier. */
static void product(const real *const *a, struct runs runs, const real *b, int64_t ldb,
                    struct results to, int64_t vectors) {
    if (vectors == 1)
        block(a, runs, b, ldb, to, 1);
    else if (vectors == 2)
        block(a, runs, b, ldb, to, 2);
#if WIDEST > 2
    else
        block(a, runs, b, ldb, to, 3);
#endif
}

/* Fill a block of rows up with the last one. (Not "until count % MR is 0": the clang of ziglang
   0.17.1 ends that loop too early.) */
static inline void repeat_last(const real **a, int64_t count) {
    for (int64_t m = count; m < round_up(count, MR); m++) a[m] = a[count - 1];
}

/* Columns are cut into panels of some vectors: the widest first, but never a narrow last one. */
static inline int64_t panel_vectors(int64_t left) {
    if (left <= WIDEST)
        return left;
    return left == WIDEST + 1 && WIDEST > 2 ? 2 : WIDEST;
}

/* At least `vectors` of `all` vectors, so that parts of so many begin and end where panels do. */
static int64_t whole_panels(int64_t vectors, int64_t all) {
    int64_t part = round_up(vectors, WIDEST);
    /* Only before the last WIDEST + 1 vectors do panels of other widths begin. */
    while (WIDEST > 2 && all > part && all % part == 1) part += WIDEST;
    return part;
}

/* For each panel of `columns`: `v`, its first vector, and `vectors`, how many. */
#define EACH_PANEL(v, vectors, columns)                                                \
    for (int64_t v = 0, all = divide_up(columns, VL), vectors = panel_vectors(all); v < all; \
         v += vectors, vectors = panel_vectors(all - v))

/* A panel's part of a row is too short for the processor to see which one it will need next. */
#define AHEAD 24 /* rows */

/* Lay rows × columns numbers out panel by panel, columns filled up with zeros. Number (k, o) is
   b[k · row + o · column]. A panel of `vectors` from vector v begins at rows · v · VL. */
static void pack_panel(const real *b, int64_t row, int64_t column, int64_t rows, int64_t columns,
                       int64_t vectors, real *to) {
    int64_t width = vectors * VL, inside = least(columns, width);
    for (int64_t k = 0; k < rows; k++) {
        real *line = to + k * width;
        const real *from = b + k * row;
        if (column == 1 && inside == width)
            for (int64_t v = 0; v < vectors; v++) {
                __builtin_prefetch(from + AHEAD * row + v * VL);
                store(line + v * VL, load(from + v * VL));
            }
        else {
            for (int64_t o = 0; o < inside; o++) line[o] = from[o * column];
            for (int64_t o = inside; o < width; o++) line[o] = 0;
        }
    }
}
