/* The kernels of gpu.py, in CUDA C.

A GPU runs one function, the kernel, in thousands of threads at once; each asks who it is
(blockIdx, threadIdx) and computes the numbers that are its own. Here every thread computes whole
results, one after another: it *gathers* what its result needs and never adds into memory that
another thread writes. So no order of threads can change a bit.

Threads with neighbouring numbers touch neighbouring channels: 32 of them read one line of memory.

REAL is float or double, INDEX int or long long: gpu.py compiles each kernel for what it meets.
Arrays are contiguous; the letters are those of the formulas there:

    N images of H × W pixels and C channels, OH × OW outputs, kernels of KH × KW taps,
    SH, SW stride, TOP, LEFT padding, DH, DW dilation

A GPU has no instruction that divides whole numbers: a division by a number that is known only when
the kernel is launched takes some twenty. So gpu.py passes by_C beside C, and the like: what to
multiply by, and how far to shift, to divide by C.
*/

// Thread t of T takes results t, t + T, t + 2T, … of `count`.
#define EACH(result, count)                                                        \
    for (INDEX result = (INDEX)blockIdx.x * blockDim.x + threadIdx.x; result < (count); \
         result += (INDEX)gridDim.x * blockDim.x)

// A size, and what divides by it.
#define DIVISOR unsigned long long
#define SIZE(size) INDEX size, DIVISOR by_##size

// The images and windows of a convolution or pooling, in the order of `_Windows` in gpu.py.
#define WINDOWS                                                                       \
    SIZE(H), SIZE(W), SIZE(C), SIZE(OH), SIZE(OW), SIZE(KH), SIZE(KW), int SH, int SW, \
        int TOP, int LEFT, int DH, int DW

#define NO_ACTIVATION 0
#define RELU 1
#define RELU6 2

// index / size for 0 ≤ index < 2³¹: ⌊index · m / 2ˢ⌋ is exact, see `divisor` in gpu.py.
static __device__ INDEX divided(INDEX index, INDEX size, DIVISOR by)
{
    if (sizeof(INDEX) == 8) return index / size;
    return (INDEX)((DIVISOR)(unsigned)index * (unsigned)(by >> 8) >> (by & 255));
}

// The last axis of an index, which is taken off: 17 of (…, 5) is 2, and leaves 3.
static __device__ int take_off(INDEX& index, INDEX size, DIVISOR by)
{
    INDEX rest = divided(index, size, by);
    int place = (int)(index - rest * size);
    index = rest;
    return place;
}
#define TAKE_OFF(index, size) take_off(index, size, by_##size)

// Of network r and channel c, where each network has `size` values: the place r·C + c.
#define CHANNEL_OF(index) \
    (divided(index, size, by_size) * C + (index) - divided(index, C, by_C) * C)

// A value that is not a number stays so: every comparison with it is false.
static __device__ REAL activate(REAL y, int activation)
{
    if (activation != NO_ACTIVATION && y < 0) return 0;
    if (activation == RELU6 && y > 6) return 6;
    return y;
}

// The windows, along one axis, that meet a pixel: from the first to the last one …
static __device__ int first_window(int pixel, int taps, int stride, int before, int dilation)
{
    int start = pixel + before - (taps - 1) * dilation;
    if (start <= 0) return 0;
    return stride == 1 ? start : (start + stride - 1) / stride;
}

static __device__ int last_window(int pixel, int windows, int stride, int before)
{
    int last = stride == 1 ? pixel + before : (pixel + before) / stride;
    return last < windows ? last : windows - 1;
}

// … and the tap with which a window does it; −1 where the pixel lies between two taps.
static __device__ int tap_of(int pixel, int window, int stride, int before, int dilation)
{
    int offset = pixel + before - window * stride;
    if (dilation == 1) return offset;
    return offset % dilation == 0 ? offset / dilation : -1;
}

// Runs over all outputs (i, j) that saw pixel (h, w), through tap (u, v). The last tap comes first.
#define EACH_WINDOW(h, w)                                                                  \
    for (int i = first_window(h, KH, SH, TOP, DH); i <= last_window(h, OH, SH, TOP); i++)   \
        for (int u = tap_of(h, i, SH, TOP, DH), j = first_window(w, KW, SW, LEFT, DW),       \
                 v [[maybe_unused]];                                                         \
             u >= 0 && j <= last_window(w, OW, SW, LEFT); j++)                               \
            if ((v = tap_of(w, j, SW, LEFT, DW)) >= 0)

static __device__ bool inside(int h, int w, int H, int W)
{
    return 0 <= h && h < H && 0 <= w && w < W;
}

/* --- convolution -------------------------------------------------------------------------

Its arithmetic is a matrix product; these two copy images into windows, and add windows' gradients
up to images. They work on `some` images of every network, from number `first` of its N. */

// rows[(s,n,i,j), (u,v,c)] = x[s, first + n, i·SH + u·DH − TOP, j·SW + v·DW − LEFT, c]
// A thread copies the same tap of STRIP neighbouring outputs: it asks only once who it is.
extern "C" __global__ void gather(INDEX count, const REAL* x, REAL* rows, int N, int first,
                                  SIZE(some), SIZE(strips), WINDOWS)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), v = TAKE_OFF(rest, KW), u = TAKE_OFF(rest, KH);
        int j = TAKE_OFF(rest, strips) * STRIP, taps = KH * KW * C;
        INDEX target = (rest * OW + j) * taps + (u * KW + v) * C + c;
        int i = TAKE_OFF(rest, OH), n = TAKE_OFF(rest, some);
        int h = i * SH + u * DH - TOP, w = j * SW + v * DW - LEFT;
        INDEX row = ((rest * N + first + n) * H + h) * W;
        for (int stop = min(j + STRIP, (int)OW); j < stop; j++, w += SW, target += taps)
            rows[target] = inside(h, w, H, W) ? x[(row + w) * C + c] : 0;
    }
}

// x_gradient[r, first + n, h, w, c] = Σ rows[(r,n,i,j), (u,v,c)] over the taps that met the pixel
extern "C" __global__ void spread(INDEX count, const REAL* rows, REAL* x_gradient, int N,
                                  int first, SIZE(some), WINDOWS)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), w = TAKE_OFF(rest, W), h = TAKE_OFF(rest, H);
        INDEX image = rest;
        int n = TAKE_OFF(rest, some);
        REAL sum = 0;
        EACH_WINDOW(h, w)
            sum += rows[((((image * OH + i) * OW + j) * KH + u) * KW + v) * C + c];
        INDEX target = rest * N + first + n;
        x_gradient[((target * H + h) * W + w) * C + c] = sum;
    }
}

// y[r, m, c] ← f(y[r, m, c] + bias[r, c]), each network having `size` values
extern "C" __global__ void finish(INDEX count, REAL* y, const REAL* bias, SIZE(size), SIZE(C),
                                  int has_bias, int activation)
{
    EACH(k, count) {
        REAL value = y[k];
        if (has_bias) value += bias[CHANNEL_OF(k)];
        y[k] = activate(value, activation);
    }
}

// largest[r,n,p,q,c] = f(max_uv y[r, n, p·KH + u, q·KW + v, c] + bias[r,c]) of windows that tile
// the H × W outputs; winners: which of its pixels that was, in reading order, the first of equals.
// A network has `size` results.
extern "C" __global__ void keep_largest(INDEX count, const REAL* y, const REAL* bias,
                                        REAL* largest, unsigned char* winners, SIZE(size), int H,
                                        int W, SIZE(C), SIZE(PH), SIZE(PW), int KH, int KW,
                                        int has_bias, int activation)
{
    EACH(k, count) {
        INDEX image = k;
        int c = TAKE_OFF(image, C), q = TAKE_OFF(image, PW), p = TAKE_OFF(image, PH);
        const REAL* corner = y + ((image * H + p * KH) * W + q * KW) * C + c;
        REAL best = corner[0];
        int winner = 0;
        for (int u = 0; u < KH; u++) {
            for (int v = 0; v < KW; v++) {
                REAL value = corner[((INDEX)u * W + v) * C];
                if (value > best) winner = u * KW + v;
                if (value > best || value != value) best = value;
            }
        }
        if (has_bias) best += bias[divided(k, size, by_size) * C + c];
        largest[k] = activate(best, activation);
        winners[k] = (unsigned char)winner;
    }
}

// result[n,h,w,c] = g[n, h / KH, w / KW, c] if the pixel won its window, else 0
extern "C" __global__ void unpool(INDEX count, const REAL* g, const unsigned char* winners,
                                  REAL* result, SIZE(H), SIZE(W), SIZE(C), int PH, int PW,
                                  int KH, int KW)
{
    EACH(k, count) {
        INDEX image = k;
        int c = TAKE_OFF(image, C), w = TAKE_OFF(image, W), h = TAKE_OFF(image, H);
        int p = h / KH, q = w / KW;
        result[k] = 0;
        if (p >= PH || q >= PW) continue;  // no whole window covers it
        INDEX place = ((image * PH + p) * PW + q) * C + c;
        if (winners[place] == h % KH * KW + w % KW) result[k] = g[place];
    }
}

/* --- depthwise convolution -------------------------------------------------------------- */

// y[r,n,i,j,c] = f(bias[r,c] + Σ_uv x[r, n, i·SH + u·DH − TOP, j·SW + v·DW − LEFT, c] · w[r,u,v,c])
extern "C" __global__ void depthwise(INDEX count, const REAL* x, const REAL* w, const REAL* bias,
                                     REAL* y, SIZE(N), int shared, int has_bias, int activation,
                                     WINDOWS)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), j = TAKE_OFF(rest, OW), i = TAKE_OFF(rest, OH);
        INDEX image = rest;
        int n = TAKE_OFF(rest, N);
        int r = (int)rest;
        if (shared) image = n;
        REAL sum = 0;
        for (int u = 0; u < KH; u++) {
            for (int v = 0; v < KW; v++) {
                int row = i * SH + u * DH - TOP, column = j * SW + v * DW - LEFT;
                if (!inside(row, column, H, W)) continue;
                sum += x[((image * H + row) * W + column) * C + c] * w[((r * KH + u) * KW + v) * C + c];
            }
        }
        if (has_bias) sum += bias[r * C + c];
        y[k] = activate(sum, activation);
    }
}

// x_gradient[r,n,h,w,c] = Σ_uv g[r,n,i,j,c] · w[r,u,v,c] over the outputs that saw the pixel
extern "C" __global__ void depthwise_input_gradient(INDEX count, const REAL* g, const REAL* w,
                                                    REAL* x_gradient, SIZE(N), WINDOWS)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), column = TAKE_OFF(rest, W), row = TAKE_OFF(rest, H);
        INDEX image = rest;
        int r = (int)divided(rest, N, by_N);
        REAL sum = 0;
        EACH_WINDOW(row, column)
            sum += g[((image * OH + i) * OW + j) * C + c] * w[((r * KH + u) * KW + v) * C + c];
        x_gradient[k] = sum;
    }
}

// partial[r, p, (u,v,c)] = Σ x · g over the rows of outputs p·step … (p+1)·step of the N·OH of
// network r
extern "C" __global__ void depthwise_weight_gradient(INDEX count, const REAL* x, const REAL* g,
                                                     REAL* partial, int N, int shared, SIZE(parts),
                                                     int step, WINDOWS)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), v = TAKE_OFF(rest, KW), u = TAKE_OFF(rest, KH);
        int p = TAKE_OFF(rest, parts);
        REAL sum = 0;
        for (INDEX row = (INDEX)p * step, stop = min(row + step, (INDEX)N * OH); row < stop; row++) {
            INDEX n = row;
            int h = TAKE_OFF(n, OH) * SH + u * DH - TOP, w = v * DW - LEFT;
            INDEX output = (rest * N * OH + row) * OW, pixel = ((shared ? n : rest * N + n) * H + h) * W;
            for (int j = 0; j < OW; j++, w += SW)
                if (inside(h, w, H, W)) sum += x[(pixel + w) * C + c] * g[(output + j) * C + c];
        }
        partial[k] = sum;
    }
}

// The same for kernels of 3×3 taps. A thread has all nine sums of a channel, so it reads each value
// of g once; of x it finds most in the cache.
extern "C" __global__ void depthwise_weight_gradient_3x3(INDEX count, const REAL* x, const REAL* g,
                                                         REAL* partial, int N, int shared,
                                                         SIZE(parts), int step, WINDOWS)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C);
        INDEX target = rest * 9 * C + c;
        int p = TAKE_OFF(rest, parts);
        REAL sums[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
        for (INDEX row = (INDEX)p * step, stop = min(row + step, (INDEX)N * OH); row < stop; row++) {
            INDEX n = row;
            int top = TAKE_OFF(n, OH) * SH - TOP;
            INDEX output = (rest * N * OH + row) * OW, image = (shared ? n : rest * N + n) * H;
            for (int j = 0; j < OW; j++) {
                REAL own = g[(output + j) * C + c];
#pragma unroll
                for (int tap = 0; tap < 9; tap++) {
                    int h = top + tap / 3 * DH, w = j * SW + tap % 3 * DW - LEFT;
                    if (inside(h, w, H, W)) sums[tap] += x[((image + h) * W + w) * C + c] * own;
                }
            }
        }
#pragma unroll
        for (int tap = 0; tap < 9; tap++) partial[target + tap * C] = sums[tap];
    }
}

/* --- sums ------------------------------------------------------------------------------- */

// sums[b, p, c] = Σ x[b, m, c] over the rows p·step … (p+1)·step of M
extern "C" __global__ void sum_rows(INDEX count, const REAL* x, REAL* sums, INDEX M, SIZE(C),
                                    SIZE(parts), int step)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), p = TAKE_OFF(rest, parts);
        REAL sum = 0;
        for (INDEX m = (INDEX)p * step; m < M && m < ((INDEX)p + 1) * step; m++)
            sum += x[(rest * M + m) * C + c];
        sums[k] = sum;
    }
}

/* --- batch norm --------------------------------------------------------------------------

All it does is to read and write large arrays, so each is read as seldom as can be. Rows are those of
`_rows` in batch_norm.py, M of C channels for each network r; `shared`: all networks see the same x.
Sums go over the rows p·step … (p+1)·step of M. */

// The place of (r, m, c).
static __device__ INDEX place_of(INDEX r, INDEX m, int c, INDEX M, int C)
{
    return (r * M + m) * C + c;
}

// Whether a gradient gets through f at a.
static __device__ bool passes(REAL a, int activation)
{
    return activation == NO_ACTIVATION || (a > 0 && (activation == RELU || a < 6));
}

// means[p, r, c] = mean of x[r, m, c],   squares[p, r, c] = Σ (x − mean)²
extern "C" __global__ void norm_moments(INDEX count, const REAL* x, double* means,
                                        double* squares, INDEX M, SIZE(C), SIZE(replicas),
                                        int step)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), r = TAKE_OFF(rest, replicas);
        INDEX start = rest * step, stop = start + step < M ? start + step : M;
        REAL sum = 0, square = 0;
        for (INDEX m = start; m < stop; m++) sum += x[place_of(r, m, c, M, C)];
        REAL mean = sum / (stop - start);
        for (INDEX m = start; m < stop; m++) {
            REAL deviation = x[place_of(r, m, c, M, C)] - mean;
            square += deviation * deviation;
        }
        means[k] = mean;
        squares[k] = square;
    }
}

/* Mean and squares of all rows, from those of parts of `step` rows each: `group` parts become one, and
the last time the variance is wanted, over M rows, in place of the squares.

merged mean = Σ n_p mean_p / n,   merged squares = Σ squares_p + Σ n_p (mean_p − merged mean)²

Source   Chan, Golub and LeVeque 1983, eq. 1.5 */
extern "C" __global__ void merge_parts(INDEX count, const double* means, const double* squares,
                                       double* merged, double* merged_squares, INDEX M, INDEX step,
                                       INDEX parts, int group, SIZE(columns), int variance)
{
    EACH(k, count) {
        INDEX part = k;
        int column = TAKE_OFF(part, columns);
        INDEX start = part * group, stop = min(start + group, parts);
        double rows = (double)min(step * (stop - start), M - step * start), mean = 0, square = 0;
        for (INDEX p = start; p < stop; p++)
            mean += (double)min(step, M - step * p) / rows * means[p * columns + column];
        for (INDEX p = start; p < stop; p++) {
            double d = means[p * columns + column] - mean;
            square += squares[p * columns + column] + (double)min(step, M - step * p) * d * d;
        }
        merged[k] = mean;
        merged_squares[k] = variance ? square / (double)M : square;
    }
}

// For every channel of every network: inverse = 1 / √(variance + ε),   factor = scale · inverse,
// offset = shift − mean · factor
extern "C" __global__ void norm_factors(INDEX count, const REAL* mean, const REAL* variance,
                                        const REAL* scale, const REAL* shift, REAL* inverse,
                                        REAL* factor, REAL* offset, int has_scale, REAL epsilon)
{
    EACH(k, count) {
        REAL over_deviation = 1 / sqrt(variance[k] + epsilon);
        REAL own = has_scale ? scale[k] * over_deviation : over_deviation;
        inverse[k] = over_deviation;
        factor[k] = own;
        offset[k] = shift[k] - mean[k] * own;
    }
}

// slope = −factor · inverse² · product / M,   constant = −center · slope − factor · total / M, and
// the gradients of scale and shift
extern "C" __global__ void norm_slopes(INDEX count, const double* total, const double* product,
                                       const REAL* center, const REAL* inverse, const REAL* factor,
                                       REAL* slope, REAL* constant, REAL* scale_gradient,
                                       REAL* shift_gradient, INDEX M)
{
    EACH(k, count) {
        double rows = (double)M;
        REAL own = (REAL)(-factor[k] * inverse[k] * inverse[k] * product[k] / rows);
        slope[k] = own;
        constant[k] = (REAL)(-(double)center[k] * own - factor[k] * total[k] / rows);
        scale_gradient[k] = (REAL)(product[k] * inverse[k]);
        shift_gradient[k] = (REAL)total[k];
    }
}

// y[r, m, c] = f(factor[r, c] · x[r, m, c] + offset[r, c]), each network having `size` values
extern "C" __global__ void normalize(INDEX count, const REAL* x, const REAL* factor,
                                     const REAL* offset, REAL* y, SIZE(size), SIZE(C), int shared,
                                     int activation)
{
    EACH(k, count) {
        INDEX channel = CHANNEL_OF(k), own = shared ? k - divided(k, size, by_size) * size : k;
        y[k] = activate(factor[channel] * x[own] + offset[channel], activation);
    }
}

// sums[p, r, c] = Σ g',   products[p, r, c] = Σ g' · (x − center[r, c]),
// where g' = g behind f, whose argument is factor · x + offset
extern "C" __global__ void norm_sums(INDEX count, const REAL* g, const REAL* x,
                                     const REAL* center, const REAL* factor, const REAL* offset,
                                     double* sums, double* products, INDEX M, SIZE(C),
                                     SIZE(replicas), int step, int shared, int activation)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), r = TAKE_OFF(rest, replicas);
        INDEX start = rest * step, stop = start + step < M ? start + step : M;
        REAL sum = 0, product = 0;
        REAL own = center[r * C + c], slope = factor[r * C + c], at_zero = offset[r * C + c];
        for (INDEX m = start; m < stop; m++) {
            INDEX place = place_of(r, m, c, M, C);
            REAL value = x[place_of(shared ? 0 : r, m, c, M, C)];
            if (!passes(slope * value + at_zero, activation)) continue;
            sum += g[place];
            product += g[place] * (value - own);
        }
        sums[k] = sum;
        products[k] = product;
    }
}

// x_gradient = factor · g' and, through the batch's own moments, + slope · x + constant
extern "C" __global__ void norm_gradient(INDEX count, const REAL* g, const REAL* x,
                                         const REAL* factor, const REAL* offset, const REAL* slope,
                                         const REAL* constant, REAL* x_gradient, SIZE(size),
                                         SIZE(C), int shared, int of_batch, int activation)
{
    EACH(k, count) {
        INDEX channel = CHANNEL_OF(k), own = shared ? k - divided(k, size, by_size) * size : k;
        bool steep = passes(factor[channel] * x[own] + offset[channel], activation);
        REAL value = steep ? factor[channel] * g[k] : 0;
        if (of_batch) value += slope[channel] * x[own] + constant[channel];
        x_gradient[k] = value;
    }
}

/* --- pooling ---------------------------------------------------------------------------- */

// y[n,i,j,c] = max_uv x[n, i·SH + u·DH − TOP, j·SW + v·DW − LEFT, c]; the padding never wins
extern "C" __global__ void max_pool(INDEX count, const REAL* x, REAL* y, WINDOWS)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), j = TAKE_OFF(rest, OW), i = TAKE_OFF(rest, OH);
        REAL best = 0;
        bool none = true;
        for (int u = 0; u < KH; u++) {
            for (int v = 0; v < KW; v++) {
                int h = i * SH + u * DH - TOP, w = j * SW + v * DW - LEFT;
                if (!inside(h, w, H, W)) continue;
                REAL value = x[((rest * H + h) * W + w) * C + c];
                if (none || value > best || value != value) best = value;
                none = false;  // and what is not a number stays: nothing is larger
            }
        }
        y[k] = best;
    }
}

// x_gradient[n,h,w,c] = Σ g[n,i,j,c] over the windows of which the pixel is the first maximum
extern "C" __global__ void max_pool_gradient(INDEX count, const REAL* g, const REAL* x,
                                             const REAL* y, REAL* x_gradient, WINDOWS)
{
    EACH(k, count) {
        INDEX image = k;
        int c = TAKE_OFF(image, C), w = TAKE_OFF(image, W), h = TAKE_OFF(image, H);
        REAL value = x[k], sum = 0;
        EACH_WINDOW(h, w) {
            INDEX output = ((image * OH + i) * OW + j) * C + c;
            bool first = value == y[output];
            for (int tap = 0; tap < u * KW + v && first; tap++) {
                int row = i * SH + tap / KW * DH - TOP, column = j * SW + tap % KW * DW - LEFT;
                if (inside(row, column, H, W))
                    first = x[((image * H + row) * W + column) * C + c] != value;
            }
            if (first) sum += g[output];
        }
        x_gradient[k] = sum;
    }
}

// y[n,i,j,c] = Σ_uv x[n, i·SH + u·DH − TOP, j·SW + v·DW − LEFT, c] / divisor[i,j]
extern "C" __global__ void mean_pool(INDEX count, const REAL* x, const REAL* divisor, REAL* y,
                                     WINDOWS)
{
    EACH(k, count) {
        INDEX rest = k;
        int c = TAKE_OFF(rest, C), j = TAKE_OFF(rest, OW), i = TAKE_OFF(rest, OH);
        REAL sum = 0;
        for (int u = 0; u < KH; u++) {
            for (int v = 0; v < KW; v++) {
                int h = i * SH + u * DH - TOP, w = j * SW + v * DW - LEFT;
                if (inside(h, w, H, W)) sum += x[((rest * H + h) * W + w) * C + c];
            }
        }
        y[k] = sum / divisor[i * OW + j];
    }
}

// x_gradient[n,h,w,c] = Σ g[n,i,j,c] / divisor[i,j] over the windows that hold the pixel
extern "C" __global__ void mean_pool_gradient(INDEX count, const REAL* g, const REAL* divisor,
                                              REAL* x_gradient, WINDOWS)
{
    EACH(k, count) {
        INDEX image = k;
        int c = TAKE_OFF(image, C), w = TAKE_OFF(image, W), h = TAKE_OFF(image, H);
        REAL sum = 0;
        EACH_WINDOW(h, w)
            sum += g[((image * OH + i) * OW + j) * C + c] / divisor[i * OW + j];
        x_gradient[k] = sum;
    }
}

/* --- random numbers --------------------------------------------------------------------- */

/* Philox 4×32-10: ten rounds of multiplying and mixing turn a counter and a key into four
random words. No state: number 1,000,000 of a stream costs what the first one costs.

Source   Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" */
static __device__ void philox(unsigned word[4], unsigned key_0, unsigned key_1)
{
    for (int round = 0; round < 10; round++) {
        unsigned long long left = 0xD2511F53ull * word[0], right = 0xCD9E8D57ull * word[2];
        word[0] = (unsigned)(right >> 32) ^ word[1] ^ key_0;
        word[1] = (unsigned)right;
        word[2] = (unsigned)(left >> 32) ^ word[3] ^ key_1;
        word[3] = (unsigned)left;
        key_0 += 0x9E3779B9u;
        key_1 += 0xBB67AE85u;
    }
}

// values[s, k] in [0, 1), 24 bits each: word k % 4 of counter k / 4 under the key seeds[s]
extern "C" __global__ void uniform(INDEX count, const unsigned long long* seeds, float* values,
                                   INDEX size)
{
    INDEX blocks = (size + 3) / 4;
    EACH(k, count) {
        INDEX seed = k / blocks;
        unsigned long long block = k % blocks;
        unsigned word[4] = {(unsigned)block, (unsigned)(block >> 32), 0, 0};
        philox(word, (unsigned)seeds[seed], (unsigned)(seeds[seed] >> 32));
        for (int lane = 0; lane < 4; lane++) {
            INDEX place = (INDEX)block * 4 + lane;
            if (place < size) values[seed * size + place] = (word[lane] >> 8) * (1.0f / 16777216);
        }
    }
}

/* --- a step of θ ------------------------------------------------------------------------

What changes from step to step (rates, the number of updates) is read from arrays, so that a
recorded step can be played again with other values in them. Each network has `size` weights. */

// v ← μ v + g + λ θ,   θ ← θ − ℓ v;   without momentum v is not kept
extern "C" __global__ void step_sgd(INDEX count, REAL* theta, const REAL* gradient, REAL* velocity,
                                    const REAL* rates, INDEX size, int several, int has_velocity,
                                    REAL momentum, REAL decay)
{
    EACH(k, count) {
        REAL v = gradient[k];
        if (decay != 0) v += decay * theta[k];
        if (has_velocity) {
            v += momentum * velocity[k];
            velocity[k] = v;
        }
        theta[k] -= rates[several ? k / size : 0] * v;
    }
}

// m ← m + (1−β₁)(g − m),   v ← v + (1−β₂)(g² − v),   θ ← θ − ℓ m / (√v + ε)
// CuPy has every kernel compiled with -ftz=true: a float below 1.2e-38 becomes 0. So √v may be 0 where
// it would be up to 1.1e-19, far below any useful ε.
extern "C" __global__ void step_adam(INDEX count, REAL* theta, const REAL* gradient, REAL* first,
                                     REAL* second, const REAL* rates, const REAL* epsilon,
                                     INDEX size, int several, REAL new_first, REAL new_second)
{
    EACH(k, count) {
        REAL g = gradient[k];
        REAL m = first[k] + new_first * (g - first[k]);
        REAL v = second[k] + new_second * (g * g - second[k]);
        first[k] = m;
        second[k] = v;
        theta[k] -= rates[several ? k / size : 0] * m / (sqrt(v) + epsilon[0]);
    }
}

/* One update of the moments (eqs. 2-3): d = θ − θ̄,  θ̄ ← θ̄ + d/n,  nσ² ← nσ² + (n−1)/n d²,
with θ̄ = first + offset and the sums in double. n[0] is the number of updates counted with this
one; 1 starts, 0 leaves this update out. */
extern "C" __global__ void fold_moments(INDEX count, const REAL* theta, REAL* first,
                                        double* offset, double* m2, const long long* n)
{
    double number = (double)n[0];
    if (number < 1) return;
    EACH(k, count) {
        if (number == 1) {
            first[k] = theta[k];
            offset[k] = 0;
            m2[k] = 0;
            continue;
        }
        double d = (double)theta[k] - (double)first[k] - offset[k];
        offset[k] += d / number;
        m2[k] += d * d * ((number - 1) / number);
    }
}

// m ← m + w (θ − m), in double
extern "C" __global__ void fold_average(INDEX count, double* mean, const REAL* theta,
                                        const double* weight)
{
    EACH(k, count) mean[k] += weight[0] * ((double)theta[k] - mean[k]);
}
