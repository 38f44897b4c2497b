/* Stand-in for a header of UPMEM's SDK. */
#ifndef DEFS_H
#define DEFS_H
#include <attributes.h>
#ifndef NR_TASKLETS
#define NR_TASKLETS 1
#endif
#ifndef STACK_SIZE_DEFAULT
#define STACK_SIZE_DEFAULT 1024
#endif
typedef unsigned int sysname_t;
sysname_t me(void);
#endif
