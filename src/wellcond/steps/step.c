/* A step of SGD, Adam or AdamW through a change of variables w = s·z, b = ζ/q − w·μ, in one pass over memory.

   Compiled for one case, chosen by -D:
     REAL      float or double
     ADAM      1 for Adam and AdamW, 0 for SGD
     STATES    tensors of state a parameter: 2 for Adam; for SGD 1 with momentum, 0 without
     NESTEROV  0 or 1
     GRAM      1: the step is in w, of PPᵀg; 0: it is in z, of Pᵀg, and comes back to w
     CENTERED  1 with μ and b; 0 where there are neither                                            */
#include <math.h>
#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct {
    REAL *p;
    const REAL *g;
    REAL *first, *second; /* momentum, or Adam's two moments */
    double sign;          /* −1 to maximize */
    double coupled;       /* weight decay added to the gradient */
    double keep;          /* 1 − lr·τ of a decoupled one */
    double a[6];
} Parameter;

typedef struct {
    int64_t rows, columns;
    int64_t shared; /* rows that share one row of scale and mean */
    const REAL *scale, *mean;
    double q;
    Parameter w, b;
} Piece;

/* How far one entry of z goes for its gradient g, with the decay in it; its state is brought up to date. */
static inline REAL change(REAL g, REAL *first, REAL *second, const REAL a[6]) {
#if ADAM /* a = lr/(1−β₁ᵗ), 1−β₁, β₂, 1−β₂, 1/√(1−β₂ᵗ), ε */
    const REAL m = *first + a[1] * (g - *first), v = a[2] * *second + a[3] * g * g;
    *first = m;
    *second = v;
    return -a[0] * m / ((sizeof(REAL) == 4 ? sqrtf(v) : sqrt(v)) * a[4] + a[5]);
#else /* a = lr, momentum, 1 − dampening, which is 1 in the first step */
#if STATES
    *first = a[1] * *first + a[2] * g;
    g = NESTEROV ? g + a[1] * *first : *first;
#endif
    return -a[0] * g;
#endif
}

static void numbers(const Parameter *of, REAL a[6]) {
    for (int i = 0; i < 6; i++) a[i] = (REAL)of->a[i];
}

/* Entries `from` to `to` of a row; what the bias needs of them: Σ moved·μ and Σ before·μ. */
static inline __attribute__((always_inline)) void entries(
    const Piece *x, int64_t r, int64_t from, int64_t to, REAL gb, REAL *moved, REAL *before, int decays) {
    const Parameter *w = &x->w;
    const int64_t start = r * x->columns, like = r / x->shared * x->columns;
    REAL *restrict p = w->p + start, *restrict first = w->first + start, *restrict second = w->second + start;
    const REAL *restrict g = w->g + start, *restrict scale = x->scale + like, *restrict mean = x->mean + like;
    const REAL sign = w->sign, coupled = w->coupled, keep = w->keep;
    REAL a[6], by = 0, at = 0;
    numbers(w, a);
#pragma omp simd reduction(+ : by, at)
    for (int64_t j = from; j < to; j++) {
        const REAL s = scale[j], old = p[j];
        REAL y = sign * g[j];
#if CENTERED
        y -= gb * mean[j];
#endif
        y *= GRAM ? s * s : s;
        REAL d = change(decays ? y + coupled * (GRAM ? old : old / s) : y, first + j, second + j, a);
        if (!GRAM) d *= s;
        p[j] = keep * old + d;
#if CENTERED
        by += mean[j] * (GRAM ? y : d);
        at += mean[j] * old;
#endif
    }
    *moved = by;
    *before = at;
}

static void row(const Piece *x, int64_t r, int64_t from, int64_t to, REAL gb, REAL *moved, REAL *before) {
    if (x->w.coupled)
        entries(x, r, from, to, gb, moved, before, 1);
    else /* nothing is divided by s */
        entries(x, r, from, to, gb, moved, before, 0);
}

#if CENTERED
static void bias(const Piece *x, int64_t r, REAL gb, REAL moved, REAL before) {
    const Parameter *b = &x->b;
    const REAL q = x->q, old = b->p[r];
    REAL a[6];
    numbers(b, a);
#if GRAM
    const REAL z = old, y = gb / (q * q) - moved, rest = 0;
#else /* ζ = q(b + w·μ), of which each of the two decays its own */
    const REAL z = q * (old + before), y = gb / q, rest = (REAL)(b->keep - x->w.keep) * before - moved;
#endif
    const REAL d = change(y + (REAL)b->coupled * z, b->first + r, b->second + r, a);
    b->p[r] = (REAL)b->keep * old + (GRAM ? d : d / q + rest);
}
#endif

void step(const Piece *pieces, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int64_t thread = 0, all = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num();
        all = omp_get_num_threads();
#endif
        for (int64_t i = 0; i < count; i++) {
            const Piece *x = pieces + i;
            REAL moved, before;
            if (x->rows == 1 && !CENTERED) { /* a cache line belongs to one thread */
                const int64_t lines = (x->columns + 15) / 16, end = (thread + 1) * lines / all * 16;
                row(x, 0, thread * lines / all * 16, end < x->columns ? end : x->columns, 0, &moved, &before);
                continue;
            }
            for (int64_t r = thread * x->rows / all; r < (thread + 1) * x->rows / all; r++) {
#if CENTERED
                const REAL gb = (REAL)x->b.sign * x->b.g[r];
                row(x, r, 0, x->columns, gb, &moved, &before);
                bias(x, r, gb, moved, before);
#else
                row(x, r, 0, x->columns, 0, &moved, &before);
#endif
            }
        }
    }
}
