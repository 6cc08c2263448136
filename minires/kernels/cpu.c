/* The kernels for a CPU.

   compiled.py compiles this file at its first use: once with -Dreal=float, once with
   -Dreal=double, each a library of its own. Every part is a chapter that can be read alone:

     c/threads.h       how tiles are shared among threads
     c/vectors.h       `vec`: some neighbouring numbers on which the processor works at once
     c/depthwise.c     depthwise convolution and its gradients
     c/separable.c     separable convolutions at prediction
     c/batch_norm.c    the passes of batch norm; sums over rows
     c/updates.c       steps of the optimizers, the moments' update
     c/...

   Conventions
   - A function that Python calls begins with EXPORT, returns 0, or -1 when there is no memory,
     and takes the number of threads last. compiled.py reads its parameters from this very
     source, so they are declared nowhere else. Allowed are (const) real *, double *, uint8_t *,
     int64_t, real, double, and const struct NAME *, which must consist of int64_t alone:
     Python gives it as a sequence of numbers. cpu.py passes only contiguous arrays.
   - The work is cut into tiles by shapes alone, never by the number of threads, and no two tiles
     write the same memory. A sum over tiles is kept in a fixed number of parts, which are added
     in a fixed order. So one thread and eight give the same bits.
   - A NaN stays a NaN. So `x < 0 ? 0 : x` is written and not `x > 0 ? x : 0`: every comparison
     with NaN is false.
*/

#include "c/threads.h"
#include "c/vectors.h"
#include "c/product.c"
#include "c/convolution.c"
#include "c/winograd.c"
#include "c/dense.c"
#include "c/pooling.c"
#include "c/depthwise.c"
#include "c/separable.c"
#include "c/batch_norm.c"
#include "c/updates.c"
