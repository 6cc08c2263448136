/* What is done to all weights after every batch: a step of an optimizer, a fold into the moments.

   θ is a vector (R, P) of R networks. Each formula is one pass over it, which memory alone
   limits: every number is read and written once. Formulas: training/optimizers.py,
   resampling/moments.py and baselines.py.

   Here a product and the sum behind it are rounded one after the other, as NumPy does it: so
   every weight has the very bits that the formula gives when it is typed into Python. */

#if defined __clang__
#pragma STDC FP_CONTRACT OFF
#elif defined __GNUC__
#pragma GCC push_options
#pragma GCC optimize("O3", "fp-contract=off") /* O3: loops of single numbers become vectors */
#endif

#include <math.h>

#define BLOCK ((int64_t)1 << 14) /* numbers in a tile */

struct update_job {
    real *theta;
    const real *gradient;
    real *first, *second;          /* state of the optimizer */
    const double *rates;           /* one for all, or one for each network */
    int64_t size, each;            /* numbers in all, and how many share a rate */
    double momentum, decay;        /* or 1 − β₁ and 1 − β₂ */
    double epsilon;
    double *offset, *m2, *mean;
    const real *origin;
    double n, weight;
};

/* Numbers `first` … `last`−1 of a tile that share a rate; calls of it walk through the tile. */
static int64_t share_rate(const struct update_job *job, int64_t first, int64_t last) {
    return least(last, (first / job->each + 1) * job->each);
}

/* v ← μ v + g + λ θ,   θ ← θ − ℓ v */
static void sgd_tile(const void *job, int64_t tile, char *scratch) {
    const struct update_job *own = job;
    int64_t last = least((tile + 1) * BLOCK, own->size);
    const real momentum = own->momentum, decay = own->decay;
    for (int64_t start = tile * BLOCK, stop; start < last; start = stop) {
        stop = share_rate(own, start, last);
        const real rate = own->rates[start / own->each];
        real *restrict theta = own->theta, *restrict velocity = own->first;
        const real *restrict gradient = own->gradient;
        for (int64_t k = start; k < stop; k++) {
            real g = gradient[k];
            if (decay != 0)
                g += decay * theta[k];
            if (velocity)
                g = velocity[k] = momentum * velocity[k] + g;
            theta[k] -= rate * g;
        }
    }
}

/* velocity   NULL without momentum
   rates      one, or one for each `each` numbers */
EXPORT int step_sgd(real *theta, const real *gradient, real *velocity, const double *rates,
                    int64_t size, int64_t each, double momentum, double decay, int64_t threads) {
    struct update_job job = {.theta = theta, .gradient = gradient, .first = velocity,
                             .rates = rates, .size = size, .each = each,
                             .momentum = momentum, .decay = decay};
    return run_tiles(sgd_tile, &job, divide_up(size, BLOCK), 0, threads);
}

/* m ← m + (1−β₁)(g − m),   v ← v + (1−β₂)(g² − v),   θ ← θ − ℓ m / (√v + ε) */
static void adam_tile(const void *job, int64_t tile, char *scratch) {
    const struct update_job *own = job;
    int64_t last = least((tile + 1) * BLOCK, own->size);
    const real rest1 = own->momentum, rest2 = own->decay, epsilon = own->epsilon;
    for (int64_t start = tile * BLOCK, stop; start < last; start = stop) {
        stop = share_rate(own, start, last);
        const real rate = own->rates[start / own->each];
        real *restrict theta = own->theta, *restrict m = own->first, *restrict v = own->second;
        const real *restrict gradient = own->gradient;
        for (int64_t k = start; k < stop; k++) {
            real g = gradient[k];
            m[k] += rest1 * (g - m[k]);
            v[k] += rest2 * (g * g - v[k]);
            theta[k] -= rate * m[k] / ((real)sqrt(v[k]) + epsilon);
        }
    }
}

/* first, second   m and v
   rest1, rest2    1 − β₁ and 1 − β₂ */
EXPORT int step_adam(real *theta, const real *gradient, real *first, real *second,
                     const double *rates, int64_t size, int64_t each, double epsilon,
                     double rest1, double rest2, int64_t threads) {
    struct update_job job = {.theta = theta, .gradient = gradient, .first = first,
                             .second = second, .rates = rates, .size = size, .each = each,
                             .momentum = rest1, .decay = rest2, .epsilon = epsilon};
    return run_tiles(adam_tile, &job, divide_up(size, BLOCK), 0, threads);
}

/* d = (θ − θ₁) − offset,   offset ← offset + d/n,   m2 ← m2 + (n−1)/n d²,   all in double */
static void moments_fold_tile(const void *job, int64_t tile, char *scratch) {
    const struct update_job *own = job;
    const double n = own->n, share = (n - 1) / n;
    const real *restrict theta = own->theta, *restrict origin = own->origin;
    double *restrict offset = own->offset, *restrict m2 = own->m2;
    for (int64_t k = tile * BLOCK; k < least((tile + 1) * BLOCK, own->size); k++) {
        double d = ((double)theta[k] - origin[k]) - offset[k];
        offset[k] += d / n;
        m2[k] += share * (d * d);
    }
}

EXPORT int fold_moments(const real *theta, const real *first, double *offset, double *m2,
                        int64_t size, double n, int64_t threads) {
    struct update_job job = {.theta = (real *)theta, .origin = first, .offset = offset, .m2 = m2,
                             .size = size, .n = n};
    return run_tiles(moments_fold_tile, &job, divide_up(size, BLOCK), 0, threads);
}

/* m ← m + w (θ − m),   in double */
static void average_fold_tile(const void *job, int64_t tile, char *scratch) {
    const struct update_job *own = job;
    const double weight = own->weight;
    const real *restrict theta = own->theta;
    double *restrict mean = own->mean;
    for (int64_t k = tile * BLOCK; k < least((tile + 1) * BLOCK, own->size); k++)
        mean[k] += weight * ((double)theta[k] - mean[k]);
}

EXPORT int fold_average(double *mean, const real *theta, int64_t size, double weight,
                        int64_t threads) {
    struct update_job job = {.theta = (real *)theta, .mean = mean, .size = size, .weight = weight};
    return run_tiles(average_fold_tile, &job, divide_up(size, BLOCK), 0, threads);
}

#if defined __GNUC__ && !defined __clang__
#pragma GCC pop_options
#endif
