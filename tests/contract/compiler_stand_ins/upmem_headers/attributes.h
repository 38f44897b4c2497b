/* Stand-in for a header of UPMEM's SDK. */
#ifndef ATTRIBUTES_H
#define ATTRIBUTES_H
#define __dma_aligned __attribute__((aligned(8)))
/* What the host reads and writes by name. */
#define __host __attribute__((used, visibility("default"))) __dma_aligned
#define __mram_ptr
#define __mram __attribute__((section(".mram"), used, visibility("default"))) __dma_aligned
/* GCC makes a section of this name without content in the file. */
#define __mram_noinit __attribute__((section(".bss.mram"), used, visibility("default"))) __dma_aligned
#endif
