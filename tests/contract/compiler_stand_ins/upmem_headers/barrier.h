/* Stand-in for a header of UPMEM's SDK. */
#ifndef BARRIER_H
#define BARRIER_H
#include <stdint.h>
typedef struct barrier_t {
    volatile uint8_t turn, arrived;
    uint8_t count;
} barrier_t;
#define BARRIER_INIT(name, tasklets) barrier_t name = {0, 0, (tasklets)};
void barrier_wait(barrier_t *barrier);
#endif
