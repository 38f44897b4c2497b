/* Stand-in for a header of UPMEM's SDK. */
#include <stddef.h>
void *mem_alloc(size_t size);
