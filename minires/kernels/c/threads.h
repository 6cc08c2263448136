/* Threads. `run_tiles` calls a function for every tile of a job, on several threads.

   Helpers are started once and sleep between jobs. A thread takes the next tile from a shared
   counter until none is left. The caller works too, and waits only for helpers that have begun:
   one that wakes up late finds nothing to do. If another caller uses the helpers just now, the
   caller does all tiles alone; the result is the same. */

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define MOST_THREADS 256
/* Rounds to look out before sleeping, some 200 to 500 microseconds: for the next job, which Python
   begins some tens of microseconds later, and for the last tile of this one. To wake a thread
   takes as long as a small job. After each round others get the core if they want it. */
#define SPINS 160
#define PAUSES 64 /* of the processor, in a round */

typedef void tile_function(const void *job, int64_t tile, char *scratch);

static struct {
    pthread_mutex_t owner;  /* held by the caller whose job the helpers do */
    pthread_mutex_t lock;   /* guards all that follows */
    pthread_cond_t begin, end;
    int helpers;            /* threads started */
    int wanted;             /* helpers that the present job may have */
    _Atomic int working;    /* helpers that have begun it */
    int open;               /* whether it may still be begun */
    _Atomic int64_t number; /* of the present job */
    _Atomic int64_t next;   /* tile */
    tile_function *function;
    const void *job;
    int64_t tiles;
    size_t scratch_bytes;
} pool = {
    PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER,
    PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER
};

/* Every thread has memory of its own, kept for the next job and freed when the thread ends: some
   for a tile's intermediate results, some for what a whole job needs. */
enum { FOR_TILE, FOR_JOB };
struct own {
    char *memory[2];
    size_t size[2];
};
static pthread_key_t own_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void free_own(void *pointer) {
    struct own *own = pointer;
    free(own->memory[FOR_TILE]);
    free(own->memory[FOR_JOB]);
    free(own);
}

/* A forked child has none of the threads, and a lock may have been held by one of them. */
static void forget_threads(void) {
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.begin, NULL);
    pthread_cond_init(&pool.end, NULL);
    pool.helpers = pool.working = pool.open = 0;
}

static void prepare(void) {
    pthread_key_create(&own_key, free_own);
#ifndef _WIN32
    pthread_atfork(NULL, NULL, forget_threads);
#endif
}

/* This thread's own memory, or NULL where the system has no more. Its content is lost when the
   thread asks for more of the same. */
static char *own_memory(int what, size_t bytes) {
    pthread_once(&once, prepare);
    struct own *own = pthread_getspecific(own_key);
    if (!own) {
        own = calloc(1, sizeof *own);
        if (!own || pthread_setspecific(own_key, own)) {
            free(own);
            return NULL;
        }
    }
    if (own->size[what] < bytes || !own->memory[what]) {
        void *memory = NULL;
        bytes = (bytes + 4096) & ~(size_t)4095;
        free(own->memory[what]);
        if (posix_memalign(&memory, 4096, bytes))
            memory = NULL, bytes = 0;
        own->memory[what] = memory;
        own->size[what] = bytes;
    }
    return own->memory[what];
}

/* The next `bytes` of a piece of memory, on a cache line of their own. */
static void *carve(char **memory, size_t bytes) {
    char *start = *memory;
    *memory += (bytes + 63) & ~(size_t)63;
    return start;
}

static void take_tiles(char *scratch) {
    int64_t tile;
    while ((tile = atomic_fetch_add(&pool.next, 1)) < pool.tiles)
        pool.function(pool.job, tile, scratch);
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_sfence(); /* what `store_far` wrote is there for the others */
#endif
}

static void pause_briefly(void) {
#if defined __x86_64__ || defined __i386__
    for (int k = 0; k < PAUSES; k++) __builtin_ia32_pause();
#endif
    sched_yield();
}

static void *help(void *argument) {
    int index = (int)(intptr_t)argument;
    int64_t seen = 0;
    for (;;) {
        for (int spin = 0; spin < SPINS && atomic_load(&pool.number) == seen; spin++)
            pause_briefly();
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.number) == seen)
            pthread_cond_wait(&pool.begin, &pool.lock);
        seen = atomic_load(&pool.number);
        int mine = pool.open && index < pool.wanted;
        pool.working += mine;
        size_t bytes = pool.scratch_bytes;
        pthread_mutex_unlock(&pool.lock);
        if (!mine)
            continue;
        char *scratch = own_memory(FOR_TILE, bytes);
        if (scratch) /* without memory the others do the work */
            take_tiles(scratch);
        pthread_mutex_lock(&pool.lock);
        if (--pool.working == 0)
            pthread_cond_signal(&pool.end);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

/* Start helpers until there are `count`. Signals are for Python's main thread. */
static void start_helpers(int count) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
#ifndef _WIN32
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
    for (; pool.helpers < count; pool.helpers++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, help, (void *)(intptr_t)pool.helpers))
            break; /* fewer helpers then */
    }
#ifndef _WIN32
    pthread_sigmask(SIG_SETMASK, &before, NULL);
#endif
    pthread_attr_destroy(&attributes);
}

/* Call function(job, tile, scratch) for every tile, on at most `threads` threads.

   Returns 0, or -1 when there is no memory for the caller's scratch. */
static int run_tiles(tile_function *function, const void *job, int64_t tiles,
                     size_t scratch_bytes, int64_t threads) {
    char *scratch = own_memory(FOR_TILE, scratch_bytes);
    if (!scratch)
        return -1;
    if (threads > MOST_THREADS)
        threads = MOST_THREADS;
    if (threads > tiles)
        threads = tiles;
    if (threads <= 1 || pthread_mutex_trylock(&pool.owner)) {
        for (int64_t tile = 0; tile < tiles; tile++)
            function(job, tile, scratch);
        return 0;
    }
    pthread_mutex_lock(&pool.lock);
    start_helpers((int)threads - 1);
    pool.function = function;
    pool.job = job;
    pool.tiles = tiles;
    pool.scratch_bytes = scratch_bytes;
    pool.wanted = (int)threads - 1;
    pool.open = 1;
    atomic_store(&pool.next, 0);
    atomic_fetch_add(&pool.number, 1);
    pthread_cond_broadcast(&pool.begin);
    pthread_mutex_unlock(&pool.lock);
    take_tiles(scratch);
    pthread_mutex_lock(&pool.lock);
    pool.open = 0; /* so `working` cannot grow any more */
    pthread_mutex_unlock(&pool.lock);
    for (int spin = 0; spin < SPINS && atomic_load(&pool.working) > 0; spin++) pause_briefly();
    pthread_mutex_lock(&pool.lock);
    while (pool.working > 0)
        pthread_cond_wait(&pool.end, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.owner);
    return 0;
}
