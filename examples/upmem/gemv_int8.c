/* y = A x for int8 on one DPU: the rows of A lie in MRAM, each tasklet takes every NR_TASKLETS-th of them.
 *
 * The host writes `columns`, `rows`, the rows and BATCH vectors, and reads the products.
 */
#include <alloc.h>
#include <defs.h>
#include <mram.h>
#include <stdint.h>

#ifndef BATCH
#define BATCH 1
#endif
#define CHUNK 256      /* bytes of a row that are in WRAM at a time; MRAM is read in multiples of 8 */
#define MAX_COLUMNS 1024
#define MAX_ROWS 1024

__host uint32_t columns;
__host uint32_t rows;
__mram_noinit int8_t matrix[MAX_ROWS * MAX_COLUMNS];
__host int8_t vectors[BATCH][MAX_COLUMNS];
__host int32_t products[BATCH][MAX_ROWS];

int main(void) {
    int8_t *part = mem_alloc(CHUNK);
    for (uint32_t row = me(); row < rows; row += NR_TASKLETS) {
        int32_t sums[BATCH] = {0};
        for (uint32_t begin = 0; begin < columns; begin += CHUNK) {
            uint32_t size = columns - begin < CHUNK ? columns - begin : CHUNK;
            mram_read(&matrix[row * columns + begin], part, size);
            for (uint32_t b = 0; b < BATCH; b++)
                for (uint32_t i = 0; i < size; i++)
                    sums[b] += part[i] * vectors[b][begin + i];
        }
        for (uint32_t b = 0; b < BATCH; b++)
            products[b][row] = sums[b];
    }
    return 0;
}
