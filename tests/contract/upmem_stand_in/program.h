/* What a program that the stand-in compiler made and the stand-in library share. Nothing of UPMEM's is like it. */
#ifndef STAND_IN_PROGRAM_H
#define STAND_IN_PROGRAM_H

#include <stdint.h>

#define STAND_IN_ABI 1
#define STAND_IN_SYMBOL "stand_in_upmem_program"

/** What a tasklet asks of the unit that it runs on. */
struct stand_in_unit {
    uint32_t (*me)(void);
    void (*mram_read)(const void *from, void *to, uint32_t size);
    void (*mram_write)(const void *from, void *to, uint32_t size);
    void *(*mem_alloc)(uint64_t size);
    void (*mem_reset)(void);
    /* Lets the other tasklets go on; `waits` is true where this one can only go on once another one has done something. */
    void (*yield)(int waits);
};

/** What the library has to know of a program. */
struct stand_in_program {
    uint32_t abi;
    uint32_t tasklets;
    uint32_t stack_size;
    char *wram_begin, *wram_end;
    char *mram_begin, *mram_end;
    int (*main)(void);
    const struct stand_in_unit **unit;
};

#endif
