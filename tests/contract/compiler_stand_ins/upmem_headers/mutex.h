/* Stand-in for a header of UPMEM's SDK. */
#ifndef MUTEX_H
#define MUTEX_H
#include <stdint.h>
typedef volatile uint8_t *mutex_id_t;
#define MUTEX_INIT(name)                                                                                               \
    static volatile uint8_t name##_lock;                                                                               \
    static const mutex_id_t name = &name##_lock;
void mutex_lock(mutex_id_t mutex);
void mutex_unlock(mutex_id_t mutex);
#endif
