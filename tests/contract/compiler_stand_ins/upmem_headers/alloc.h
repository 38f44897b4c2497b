/* Stand-in for a header of UPMEM's SDK. */
#ifndef ALLOC_H
#define ALLOC_H
#include <stddef.h>
/* From the one heap of the unit, which nothing gives back but mem_reset: it outlives a launch. */
void *mem_alloc(size_t size);
void *mem_reset(void);
#endif
