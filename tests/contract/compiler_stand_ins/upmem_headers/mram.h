/* Stand-in for a header of UPMEM's SDK. */
#ifndef MRAM_H
#define MRAM_H
#include <attributes.h>
/* 8 to 2048 bytes, a multiple of 8, between addresses that are multiples of 8. */
void mram_read(const __mram_ptr void *from, void *to, unsigned int size);
void mram_write(const void *from, __mram_ptr void *to, unsigned int size);
#endif
