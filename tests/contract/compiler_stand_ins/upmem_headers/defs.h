/* Stand-in for a header of UPMEM's SDK. */
typedef unsigned int sysname_t;
sysname_t me(void);
