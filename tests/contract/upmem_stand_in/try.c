/* A program for the units that does what the tests of the stand-in ask for. */
#include <alloc.h>
#include <attributes.h>
#include <barrier.h>
#include <defs.h>
#include <mram.h>
#include <mutex.h>
#include <stdint.h>

enum { READ, WRITE, SUM, COUNT, HANG, ALLOCATE, ALLOCATE_ANEW };

BARRIER_INIT(all, NR_TASKLETS)
MUTEX_INIT(one)

__host struct {
    uint32_t what, from, to, size;
} asked;
__host uint64_t answers[NR_TASKLETS];
__host uint32_t started = 7;
__mram_noinit uint8_t area[4096];

static uint32_t parts[NR_TASKLETS], counter;
static __dma_aligned uint8_t buffer[4096];

int main(void) {
    switch (asked.what) {
    case READ:
        if (me() == 0)
            mram_read(&area[asked.from], &buffer[asked.to], asked.size);
        answers[me()] = buffer[asked.to];
        break;
    case WRITE:
        if (me() == 0) {
            buffer[asked.from] = 42;
            mram_write(&buffer[asked.from], &area[asked.to], asked.size);
        }
        break;
    case SUM:
        parts[me()] = me() + asked.size;
        barrier_wait(&all);
        answers[me()] = 0;
        for (uint32_t i = 0; i < NR_TASKLETS; i++)
            answers[me()] += parts[i];
        break;
    case COUNT:
        for (uint32_t i = 0; i < asked.size; i++) {
            mutex_lock(one);
            uint32_t now = counter;
            mram_read(area, &buffer[8 * me()], 8);
            counter = now + 1;
            mutex_unlock(one);
        }
        answers[me()] = counter;
        break;
    case HANG:
        if (me() == 0)
            barrier_wait(&all);
        break;
    case ALLOCATE_ANEW:
        if (me() == 0)
            mem_reset();
        barrier_wait(&all);
        mem_alloc(asked.size);
        break;
    case ALLOCATE:
        mem_alloc(asked.size);
        break;
    }
    started++;
    return 0;
}
