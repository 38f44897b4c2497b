/* The part of UPMEM's runtime on the unit that a program needs: linked to each program by the stand-in compiler. */
#include "program.h"

#include <alloc.h>
#include <barrier.h>
#include <defs.h>
#include <mram.h>
#include <mutex.h>

extern char __start_wram[] __attribute__((weak, visibility("hidden")));
extern char __stop_wram[] __attribute__((weak, visibility("hidden")));
extern char __start_mram[] __attribute__((weak, visibility("hidden")));
extern char __stop_mram[] __attribute__((weak, visibility("hidden")));
int stand_in_main(void);

static const struct stand_in_unit *unit;

__attribute__((visibility("default"))) struct stand_in_program stand_in_upmem_program = {
    STAND_IN_ABI, NR_TASKLETS, STACK_SIZE_DEFAULT, __start_wram, __stop_wram, __start_mram, __stop_mram,
    stand_in_main, &unit,
};

sysname_t me(void) { return unit->me(); }

void mram_read(const __mram_ptr void *from, void *to, unsigned int size) { unit->mram_read(from, to, size); }

void mram_write(const void *from, __mram_ptr void *to, unsigned int size) { unit->mram_write(from, to, size); }

void *mem_alloc(size_t size) { return unit->mem_alloc(size); }

void *mem_reset(void) {
    unit->mem_reset();
    return 0;
}

void barrier_wait(barrier_t *barrier) {
    uint8_t turn = barrier->turn;
    if (++barrier->arrived == barrier->count) {
        barrier->arrived = 0;
        barrier->turn++;
        unit->yield(0);
        return;
    }
    while (barrier->turn == turn)
        unit->yield(1);
}

void mutex_lock(mutex_id_t mutex) {
    while (*mutex)
        unit->yield(1);
    *mutex = 1;
}

void mutex_unlock(mutex_id_t mutex) {
    *mutex = 0;
    unit->yield(0);
}
