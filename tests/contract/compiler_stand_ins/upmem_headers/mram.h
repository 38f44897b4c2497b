/* Stand-in for a header of UPMEM's SDK. */
#define __host
#define __mram_noinit
void mram_read(const void *from, void *to, unsigned int size);
void mram_write(const void *from, void *to, unsigned int size);
