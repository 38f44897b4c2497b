/* Matrix times vectors, int8, on one of UPMEM's processing units: its rows of every matrix lie in its MRAM.
 *
 * The host lays the weights down once, in `weights`. For a product it writes `task` and the vectors, launches, and reads
 * `products`: for each vector one 32-bit number a row. Two rows make the 8 bytes that a transfer has at least, so a tasklet
 * takes two at a time, every NR_TASKLETS-th pair. A host's number of 16 bits is two vectors, the high and the low byte.
 */
#include <attributes.h>
#include <defs.h>
#include <mram.h>
#include <stdint.h>

#ifndef BATCH
#define BATCH 1
#endif
#define VECTORS (2 * BATCH)
#define CHUNK 256 /* bytes of a row that are in WRAM at a time */
#define INPUT_BYTES (32 << 10)
#define WEIGHT_BYTES (60 << 20)
#define PRODUCT_BYTES (2 << 20)

struct task {
    uint32_t offset;  /* where in `weights` this unit's rows of the matrix begin */
    uint32_t rows;    /* an even number */
    uint32_t columns; /* a multiple of 8 */
    uint32_t vectors;
};

__host struct task task;
/* What fits, for the host: so it need not know with which BATCH this was compiled. */
__host uint32_t most_vectors = VECTORS;
__host int8_t inputs[INPUT_BYTES];
__mram_noinit int8_t weights[WEIGHT_BYTES];
__mram_noinit int32_t products[PRODUCT_BYTES / sizeof(int32_t)];

static __dma_aligned int8_t parts[NR_TASKLETS][CHUNK];
static __dma_aligned int32_t sums[NR_TASKLETS][VECTORS][2];

int main(void) {
    int8_t *part = parts[me()];
    int32_t(*sum)[2] = sums[me()];
    for (uint32_t row = 2 * me(); row < task.rows; row += 2 * NR_TASKLETS) {
        for (uint32_t v = 0; v < task.vectors; v++)
            sum[v][0] = sum[v][1] = 0;
        for (uint32_t which = 0; which < 2; which++) {
            uint32_t at = task.offset + (row + which) * task.columns;
            for (uint32_t begin = 0; begin < task.columns; begin += CHUNK) {
                uint32_t size = task.columns - begin < CHUNK ? task.columns - begin : CHUNK;
                mram_read(&weights[at + begin], part, size);
                for (uint32_t v = 0; v < task.vectors; v++) {
                    const int8_t *vector = &inputs[v * task.columns + begin];
                    int32_t more = 0;
                    for (uint32_t i = 0; i < size; i++)
                        more += part[i] * vector[i];
                    sum[v][which] += more;
                }
            }
        }
        for (uint32_t v = 0; v < task.vectors; v++)
            mram_write(sum[v], &products[v * task.rows + row], sizeof sum[v]);
    }
    return 0;
}
