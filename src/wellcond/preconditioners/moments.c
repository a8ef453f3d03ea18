/* Running moments of a batch, in one look at it. REAL is float or double. */
#include <math.h>
#include <stdint.h>

enum { TILE = 64, ROWS = 128 }; /* channels at a time; rows before a sum goes on in double */

/* Σ(x−μ) and Σ(x−μ)² over the rows of up to TILE channels that are next to each other. */
static void beside(
    const REAL *x, int64_t rows, int64_t channels, int width, const REAL *mean, double *sums, double *squares) {
    for (int64_t start = 0; start < rows; start += ROWS) {
        const int64_t end = start + ROWS < rows ? start + ROWS : rows;
        REAL sum[TILE] = {0}, square[TILE] = {0};
        for (int64_t r = start; r < end; r++)
#pragma omp simd
            for (int c = 0; c < width; c++) {
                const REAL away = x[r * channels + c] - mean[c];
                sum[c] += away;
                square[c] += away * away;
            }
        for (int c = 0; c < width; c++) {
            sums[c] += sum[c];
            squares[c] += square[c];
        }
    }
}

/* The same of one channel, whose entries are in runs of `inner`. */
static void along(
    const REAL *x, int64_t rows, int64_t channels, int64_t inner, REAL mean, double *sums, double *squares) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t start = 0; start < inner; start += ROWS * TILE) {
            const int64_t end = start + ROWS * TILE < inner ? start + ROWS * TILE : inner;
            REAL sum = 0, square = 0;
#pragma omp simd reduction(+ : sum, square)
            for (int64_t i = start; i < end; i++) {
                const REAL away = x[r * channels * inner + i] - mean;
                sum += away;
                square += away * away;
            }
            *sums += sum;
            *squares += square;
        }
}

/* x is (rows, channels, inner). μ += rate·mean(x−μ), σ² += rate·(mean((x−μ)²) − σ²), about μ as it was, where the batch
   is finite; σ̃² = σ² + ε₁ max σ² + ε₂. */
void moments(const REAL *x, int64_t rows, int64_t channels, int64_t inner, double rate, double relative, double eps,
    REAL *mean, REAL *variance, REAL *smoothed, int threads) {
    const double share = 1.0 / ((double)rows * (double)inner);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < channels; first += TILE) {
        const int width = channels - first < TILE ? (int)(channels - first) : TILE;
        double sums[TILE] = {0}, squares[TILE] = {0};
        if (inner == 1)
            beside(x + first, rows, channels, width, mean + first, sums, squares);
        else
            for (int c = 0; c < width; c++)
                along(x + (first + c) * inner, rows, channels, inner, mean[first + c], sums + c, squares + c);
        for (int c = 0; c < width; c++) {
            const double shift = sums[c] * share, excess = squares[c] * share - variance[first + c];
            if (isfinite(shift)) mean[first + c] += (REAL)(rate * shift);
            if (isfinite(excess)) variance[first + c] += (REAL)(rate * excess);
        }
    }
    REAL largest = 0;
    for (int64_t c = 0; c < channels; c++) largest = variance[c] > largest ? variance[c] : largest;
    for (int64_t c = 0; c < channels; c++) smoothed[c] = variance[c] + (REAL)(relative * largest + eps);
}
