/* Products of plain matrices: c (M, L) = a (M, K) · b (K, L), each with any steps.

   K is cut into pieces of some rows of b. A piece of one panel is small enough to stay in a core's
   own cache while all rows of a pass over it, and c takes the sums of the pieces up. So weights are
   read from memory once, and c only as often as there are pieces. */

#define PIECE 1024      /* rows of b */
#define TURNED_INNER 128 /* from so many rows of a transposed b on it pays to turn the results */
#define PACK_ROWS 16    /* of a: as many reads pay for one more copy of b */
#define PART_WORK (1 << 21) /* multiplications in a tile: less is not worth a thread */
#define MOST_PARTS 64

struct matrices {
    int64_t count, rows, inner, columns;       /* c is (count, rows, columns), contiguous */
    int64_t a_matrix, a_row, a_column;         /* steps; 0 where all share one matrix */
    int64_t b_matrix, b_row, b_column;
};

struct matmul_job {
    struct matrices s;
    const real *a, *b;
    real *c;
    int64_t row_parts, column_parts, part_rows, part_vectors;
};

static void matmul_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct matmul_job *job = pointer;
    const struct matrices *s = &job->s;
    int64_t part = tile % job->column_parts, block = tile / job->column_parts % job->row_parts;
    int64_t matrix = tile / job->column_parts / job->row_parts, zero = 0;
    int64_t first_row = block * job->part_rows, first = part * job->part_vectors * VL;
    int64_t rows = least(job->part_rows, s->rows - first_row);
    int64_t columns = least(job->part_vectors * VL, s->columns - first);
    const real *a = job->a + matrix * s->a_matrix + first_row * s->a_row;
    const real *b = job->b + matrix * s->b_matrix + first * s->b_column;
    real *c = job->c + (matrix * s->rows + first_row) * s->columns + first;
    real *copy = (real *)scratch;
    if (s->inner == 0)
        for (int64_t i = 0; i < rows; i++) memset(c + i * s->columns, 0, columns * sizeof(real));
    for (int64_t k = 0; k < s->inner; k += PIECE) {
        struct runs runs = {&zero, 1, least(PIECE, s->inner - k), s->a_column};
        EACH_PANEL(v, vectors, columns) {
            const real *panel = b + k * s->b_row + v * VL * s->b_column;
            int64_t left = columns - v * VL, step = s->b_row;
            if (rows > PACK_ROWS || s->b_column != 1 || left < vectors * VL) {
                pack_panel(panel, s->b_row, s->b_column, runs.length, left, vectors, copy);
                panel = copy;
                step = vectors * VL;
            }
            for (int64_t i = 0; i < rows; i += MR) {
                const real *row[MR];
                for (int64_t m = 0; m < MR; m++)
                    row[m] = a + least(i + m, rows - 1) * s->a_row + k * s->a_column;
                struct results to = {.c = c + i * s->columns + v * VL, .ldc = s->columns,
                                     .rows = rows - i, .columns = left, .add = k > 0};
                product(row, runs, panel, step, to, vectors);
            }
        }
    }
}

/* Two other ways, in which one of the matrices is laid out in panels first, as a whole. */
struct whole_job {
    struct matrices s;
    const real *a, *b;
    real *c, *packed;
    int64_t panels, parts, part;         /* parts of the other matrix */
    const real *from;                    /* what is laid out: (K, columns) by these steps */
    int64_t matrix, row, column, columns;
};

static void lay_out_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct whole_job *job = pointer;
    int64_t number = 0, which = tile / job->panels, inner = job->s.inner;
    real *packed = job->packed + which * inner * round_up(job->columns, VL);
    (void)scratch;
    EACH_PANEL(v, vectors, job->columns)
        if (number++ == tile % job->panels)
            pack_panel(job->from + which * job->matrix + v * VL * job->column, job->row,
                       job->column, inner, job->columns - v * VL, vectors,
                       packed + inner * v * VL);
}

/* Where b lies transposed, its columns are read like the rows of a, which is laid out:
   cᵀ = bᵀ · aᵀ, and a block of results is turned when it is written. */
static void turned_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct whole_job *job = pointer;
    const struct matrices *s = &job->s;
    int64_t matrix = tile / job->parts, first = tile % job->parts * job->part, zero = 0;
    int64_t last = least(first + job->part, s->columns);
    const real *b = job->b + matrix * s->b_matrix;
    const real *packed = job->packed + matrix * s->inner * round_up(s->rows, VL);
    real *c = job->c + matrix * s->rows * s->columns, *block = (real *)scratch;
    struct runs runs = {&zero, 1, s->inner, s->b_row};
    for (int64_t o = first; o < last; o += MR) {
        const real *column[MR];
        for (int64_t m = 0; m < MR; m++) column[m] = b + least(o + m, last - 1) * s->b_column;
        EACH_PANEL(v, vectors, s->rows) {
            struct results to = {.c = block, .ldc = vectors * VL, .rows = MR,
                                 .columns = vectors * VL};
            product(column, runs, packed + s->inner * v * VL, vectors * VL, to, vectors);
            int64_t rows = least(vectors * VL, s->rows - v * VL), count = least(MR, last - o);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t m = 0; m < count; m++)
                    c[(v * VL + i) * s->columns + o + m] = block[m * vectors * VL + i];
        }
    }
}

/* Where a lies transposed, b is laid out, and MR columns of a at a time are laid side by side:
   the gradient of a dense layer's weights, where K is the batch. */
static void beside_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct whole_job *job = pointer;
    const struct matrices *s = &job->s;
    int64_t matrix = tile / job->parts, first = tile % job->parts * job->part, zero = 0;
    int64_t last = least(first + job->part, s->rows);
    const real *packed = job->packed + matrix * s->inner * round_up(s->columns, VL);
    real *c = job->c + matrix * s->rows * s->columns, *group = (real *)scratch;
    struct runs runs = {&zero, 1, s->inner, MR};
    const real *row[MR];
    for (int64_t m = 0; m < MR; m++) row[m] = group + m;
    for (int64_t i = first; i < last; i += MR) {
        const real *a = job->a + matrix * s->a_matrix + i * s->a_row;
        for (int64_t k = 0; k < s->inner; k++, a += s->a_column)
            if (s->a_row == 1 && last - i >= MR)
                memcpy(group + k * MR, a, MR * sizeof(real));
            else
                for (int64_t m = 0; m < MR; m++)
                    group[k * MR + m] = a[least(m, last - i - 1) * s->a_row];
        EACH_PANEL(v, vectors, s->columns) {
            struct results to = {.c = c + i * s->columns + v * VL, .ldc = s->columns,
                                 .rows = last - i, .columns = s->columns - v * VL};
            product(row, runs, packed + s->inner * v * VL, vectors * VL, to, vectors);
        }
    }
}

/* Lay `columns` columns of one matrix out, then call `tile` for parts of `others` rows. */
static int with_panels(struct whole_job *job, int64_t others, int64_t parts, tile_function *tile,
                       size_t scratch_bytes, int64_t threads) {
    job->panels = count_panels(job->columns);
    job->part = round_up(divide_up(others, most(parts, 1)), MR);
    job->parts = divide_up(others, job->part);
    int64_t size = job->s.inner * round_up(job->columns, VL);
    job->packed = (real *)own_memory(FOR_JOB, job->s.count * size * sizeof(real));
    if (!job->packed || run_tiles(lay_out_tile, job, job->s.count * job->panels, 0,
                                  job->s.count * size < (1 << 15) ? 1 : threads))
        return -1;
    return run_tiles(tile, job, job->s.count * job->parts, scratch_bytes, threads);
}

/* Few rows of a: b is read once, from its first number to its last, as fast as memory gives it.
   LANES parts of its rows are summed apart, and these sums are added in order:

     c[i, :] = Σ_lane Σ_k a[i, k] · b[k, :] */
#define FEW_ROWS 4
#define FEW_WORK (1 << 18) /* numbers in b: fewer stay in the cache anyway */
#define LANES 8
#define FEW_STEPS 4 /* rows of b for one reading of the sums */

struct few_job {
    struct matrices s;
    const real *a, *b;
    real *sums;
    int64_t part;
};

/* sums += Σ_n weight[n] · b[n, :] */
static inline void add_weighted(real *sums, const real *weight, const real *b, int64_t step,
                                const int count, int64_t columns) {
    int64_t o = 0;
    for (; o + VL <= columns; o += VL) {
        vec sum = load(sums + o);
        for (int n = 0; n < count; n++) sum += weight[n] * load(b + n * step + o);
        store(sums + o, sum);
    }
    for (; o < columns; o++)
        for (int n = 0; n < count; n++) sums[o] += weight[n] * b[n * step + o];
}

static void few_tile(const void *pointer, int64_t tile, char *scratch) {
    const struct few_job *job = pointer;
    const struct matrices *s = &job->s;
    int64_t matrix = tile / LANES, k = tile % LANES * job->part;
    int64_t last = least(k + job->part, s->inner);
    const real *a = job->a + matrix * s->a_matrix, *b = job->b + matrix * s->b_matrix;
    real *sums = job->sums + tile * s->rows * s->columns, weight[FEW_STEPS];
    (void)scratch;
    memset(sums, 0, s->rows * s->columns * sizeof(real));
    while (k < last) {
        int64_t steps = last - k >= FEW_STEPS ? FEW_STEPS : 1;
        for (int64_t i = 0; i < s->rows; i++) {
            for (int64_t n = 0; n < steps; n++)
                weight[n] = a[i * s->a_row + (k + n) * s->a_column];
            real *own = sums + i * s->columns;
            if (steps == FEW_STEPS)
                add_weighted(own, weight, b + k * s->b_row, s->b_row, FEW_STEPS, s->columns);
            else
                add_weighted(own, weight, b + k * s->b_row, s->b_row, 1, s->columns);
        }
        k += steps;
    }
}

static int matmul_few(const real *a, const real *b, real *c, const struct matrices *s,
                      int64_t threads) {
    int64_t size = s->rows * s->columns;
    struct few_job job = {.s = *s, .a = a, .b = b, .part = divide_up(s->inner, LANES)};
    job.sums = (real *)own_memory(FOR_JOB, s->count * LANES * size * sizeof(real));
    if (!job.sums || run_tiles(few_tile, &job, s->count * LANES, 0, threads))
        return -1;
    for (int64_t k = 0; k < s->count * size; k++) {
        real sum = 0;
        for (int64_t lane = 0; lane < LANES; lane++)
            sum += job.sums[(k / size * LANES + lane) * size + k % size];
        c[k] = sum;
    }
    return 0;
}

EXPORT int matmul(const real *a, const real *b, real *c, const struct matrices *s,
                  int64_t threads) {
    int64_t work = s->rows * s->inner * s->columns;
    int64_t parts = least(MOST_PARTS, divide_up(work, PART_WORK));
    if (work * s->count < PART_WORK / 8)
        threads = 1;
    if (s->rows <= FEW_ROWS && s->b_column == 1 && s->inner * s->columns >= FEW_WORK)
        return matmul_few(a, b, c, s, threads);
    struct whole_job whole = {.s = *s, .a = a, .b = b, .c = c};
    if (s->b_column != 1 && s->rows >= VL && s->inner >= TURNED_INNER) {
        whole.from = a;
        whole.matrix = s->a_matrix, whole.row = s->a_column, whole.column = s->a_row;
        whole.columns = s->rows;
        return with_panels(&whole, s->columns, parts, turned_tile,
                           MR * WIDEST * VL * sizeof(real), threads);
    }
    if (s->a_column != 1 && s->inner > 0) {
        whole.from = b;
        whole.matrix = s->b_matrix, whole.row = s->b_row, whole.column = s->b_column;
        whole.columns = s->columns;
        return with_panels(&whole, s->rows, parts, beside_tile, s->inner * MR * sizeof(real),
                           threads);
    }
    struct matmul_job job = {.s = *s, .a = a, .b = b, .c = c};
    /* Columns first: then each number of b is read once. Rows only where that makes few tiles:
       tiles of other rows lay the same part of b out again. */
    job.part_vectors = round_up(divide_up(divide_up(s->columns, VL), most(parts, 1)), 2 * WIDEST);
    job.column_parts = divide_up(divide_up(s->columns, VL), job.part_vectors);
    int64_t row_parts = divide_up(least(parts, LEAST_TILES), most(1, job.column_parts));
    job.part_rows = round_up(most(divide_up(s->rows, most(1, row_parts)), 4 * MR), MR);
    job.row_parts = divide_up(s->rows, job.part_rows);
    return run_tiles(matmul_tile, &job, s->count * job.row_parts * job.column_parts,
                     PIECE * WIDEST * VL * sizeof(real), threads);
}
