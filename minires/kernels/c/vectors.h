/* `vec`: as many neighbouring numbers as the processor works on at once, VL of them.

   +, -, *, / work on a vec, and on a vec and a number, number by number. */

#if defined __AVX512F__
#define VECTOR_BYTES 64
#elif defined __AVX__
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define VL ((int64_t)(VECTOR_BYTES / sizeof(real)))

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
/* The same anywhere in memory: arrays begin where they begin. */
typedef real vec_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

static inline vec load(const real *from) { return *(const vec_anywhere *)from; }
static inline void store(real *to, vec value) { *(vec_anywhere *)to = value; }

/* The first `count` numbers of a vector, fewer than VL. The others are neither read nor written;
   in what was loaded they are 0. FIRST has a bit or a lane for each 4 bytes. */
#if defined __AVX512F__
#include <immintrin.h>
#define FIRST(count) ((__mmask16)((1u << (count) * (sizeof(real) / 4)) - 1))
static inline vec load_few(const real *from, int64_t count) {
    return (vec)_mm512_maskz_loadu_ps(FIRST(count), from);
}
static inline void store_few(real *to, vec value, int64_t count) {
    _mm512_mask_storeu_ps(to, FIRST(count), (__m512)value);
}
#elif defined __AVX__
#include <immintrin.h>
static const int32_t lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
#define FIRST(count) \
    _mm256_loadu_si256((const __m256i *)(lanes + 8 - (count) * (int64_t)(sizeof(real) / 4)))
static inline vec load_few(const real *from, int64_t count) {
    return (vec)_mm256_maskload_ps((const float *)from, FIRST(count));
}
static inline void store_few(real *to, vec value, int64_t count) {
    _mm256_maskstore_ps((float *)to, FIRST(count), (__m256)value);
}
#else
static inline vec load_few(const real *from, int64_t count) {
    vec value = {0};
    memcpy(&value, from, count * sizeof(real));
    return value;
}
static inline void store_few(real *to, vec value, int64_t count) {
    memcpy(to, &value, count * sizeof(real));
}
#endif

static inline vec load_some(const real *from, int64_t count) {
    return count >= VL ? load(from) : count > 0 ? load_few(from, count) : (vec){0};
}

static inline void store_some(real *to, vec value, int64_t count) {
    if (count >= VL)
        store(to, value);
    else if (count > 0)
        store_few(to, value, count);
}

/* A result this large leaves the caches before anybody reads it. So it is written past them, which
   also spares the processor from reading the memory that it is about to overwrite. That goes for
   whole vectors at multiples of their size alone. */
#define FAR_BYTES ((int64_t)1 << 24)

static inline int lies_far(const real *to, int64_t rows, int64_t channels) {
    return rows * channels * (int64_t)sizeof(real) >= FAR_BYTES && channels % VL == 0 &&
           (uintptr_t)to % VECTOR_BYTES == 0;
}

static inline void store_far(real *to, vec value) {
#if defined __clang__
    __builtin_nontemporal_store(value, (vec *)to);
#elif defined __AVX512F__
    __builtin_ia32_movntps512((float *)to, (float __attribute__((vector_size(64))))value);
#elif defined __AVX__
    __builtin_ia32_movntps256((float *)to, (float __attribute__((vector_size(32))))value);
#else
    store(to, value);
#endif
}

/* Do something with every vector of `count` numbers: `c` is its first one, and `some` how many it
   has, VL or, in the last vector, fewer. What is done is written once and compiled twice: where
   `some` is VL, `load_some` is `load`. */
#define EACH_VECTOR(c, some, count, ...)                 \
    {                                                    \
        int64_t c = 0;                                   \
        for (; c + VL <= (count); c += VL) {             \
            const int64_t some = VL;                     \
            __VA_ARGS__;                                 \
        }                                                \
        if (c < (count)) {                               \
            const int64_t some = (count) - c;            \
            __VA_ARGS__;                                 \
        }                                                \
    }

static inline void store_result(real *to, vec value, int64_t count, int far) {
    if (far)
        store_far(to, value);
    else
        store_some(to, value, count);
}

/* For a function whose arguments are constants where it is called: only inlined it is fast. */
#define INLINE static inline __attribute__((always_inline))

static inline vec spread(real value) { return value - (vec){0}; } /* VL times the same */

/* Before a loop whose length the compiler knows: it is written out, and its sums are registers. */
#define UNROLL _Pragma("GCC unroll 16")

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

/* Activations: what cpu.py calls None, "relu", "relu6". A NaN stays a NaN. */
enum { LINEAR, RELU, RELU6 };

/* A whole number as wide as `real`. Comparing gives VL of them: all bits set, or none. */
typedef __typeof__(__builtin_choose_expr(sizeof(real) == 4, (int32_t)0, (int64_t)0)) whole;
typedef whole vec_mask __attribute__((vector_size(VECTOR_BYTES)));

/* `yes` where the mask is set, `no` elsewhere */
static inline vec chosen(vec_mask mask, vec yes, vec no) {
    return (vec)(((vec_mask)yes & mask) | ((vec_mask)no & ~mask));
}

static inline vec activated(vec x, int64_t activation) {
    if (activation != LINEAR)
        x = chosen(x < 0, (vec){0}, x);
    if (activation == RELU6)
        x = chosen(x > 6, spread(6), x);
    return x;
}

/* to[l] += value[l], in double, for the first `count` of them */
typedef double vec_doubles __attribute__((vector_size(VECTOR_BYTES / sizeof(real) * sizeof(double)),
                                          aligned(sizeof(double)), may_alias));
static inline void add_to_doubles(double *to, vec value, int64_t count) {
    if (count >= VL)
        *(vec_doubles *)to += __builtin_convertvector(value, vec_doubles);
    else
        for (int64_t l = 0; l < count; l++) to[l] += value[l];
}

typedef uint8_t vec_bytes __attribute__((vector_size(VECTOR_BYTES / sizeof(real)))); /* VL bytes */
static inline vec_bytes load_bytes(const uint8_t *from, int64_t count) {
    vec_bytes bytes = {0};
    memcpy(&bytes, from, least(count, VL));
    return bytes;
}
