/* Functional stand-in for <dpu.h> of UPMEM's SDK 2025.1: its documented names, types and errors; see dpu.c for what it does.
 *
 * A program that compiles against this header compiles against UPMEM's. It has what programs of this project use, not all.
 */
#ifndef DPU_H
#define DPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef enum dpu_error_t {
    DPU_OK,
    DPU_ERR_INTERNAL,
    DPU_ERR_SYSTEM,
    DPU_ERR_DRIVER,
    DPU_ERR_ALLOCATION,
    DPU_ERR_INVALID_DPU_SET,
    DPU_ERR_INVALID_THREAD_ID,
    DPU_ERR_INVALID_NOTIFY_ID,
    DPU_ERR_INVALID_WRAM_ACCESS,
    DPU_ERR_INVALID_IRAM_ACCESS,
    DPU_ERR_INVALID_MRAM_ACCESS,
    DPU_ERR_INVALID_SYMBOL_ACCESS,
    DPU_ERR_MRAM_BUSY,
    DPU_ERR_TRANSFER_ALREADY_SET,
    DPU_ERR_NO_PROGRAM_LOADED,
    DPU_ERR_DIFFERENT_DPU_PROGRAMS,
    DPU_ERR_CORRUPTED_MEMORY,
    DPU_ERR_DPU_DISABLED,
    DPU_ERR_DPU_ALREADY_RUNNING,
    DPU_ERR_INVALID_MEMORY_TRANSFER,
    DPU_ERR_INVALID_LAUNCH_POLICY,
    DPU_ERR_DPU_FAULT,
    DPU_ERR_ELF_INVALID_FILE,
    DPU_ERR_ELF_NO_SUCH_FILE,
    DPU_ERR_ELF_NO_SUCH_SECTION,
    DPU_ERR_TIMEOUT,
    DPU_ERR_INVALID_PROFILE,
    DPU_ERR_UNKNOWN_SYMBOL
} dpu_error_t;

typedef enum _dpu_launch_policy_t { DPU_ASYNCHRONOUS, DPU_SYNCHRONOUS } dpu_launch_policy_t;
typedef enum _dpu_xfer_t { DPU_XFER_TO_DPU, DPU_XFER_FROM_DPU } dpu_xfer_t;
typedef enum _dpu_xfer_flags_t { DPU_XFER_DEFAULT = 0, DPU_XFER_NO_RESET = 1 << 0 } dpu_xfer_flags_t;
typedef enum _dpu_set_kind_t { DPU_SET_RANKS, DPU_SET_DPU } dpu_set_kind_t;

struct dpu_t;
struct dpu_rank_t;
struct dpu_program_t;

struct dpu_set_t {
    dpu_set_kind_t kind;
    union {
        struct {
            uint32_t nr_ranks;
            struct dpu_rank_t **ranks;
        } list;
        struct dpu_t *dpu;
    };
};

struct dpu_symbol_t {
    uint32_t address;
    uint32_t size;
};

#define DPU_ALLOCATE_ALL ((uint32_t)-1)
/** What of the MRAM the program has not declared. */
#define DPU_MRAM_HEAP_POINTER_NAME "__sys_used_mram_end"

dpu_error_t dpu_alloc(uint32_t nr_dpus, const char *profile, struct dpu_set_t *dpu_set);
dpu_error_t dpu_alloc_ranks(uint32_t nr_ranks, const char *profile, struct dpu_set_t *dpu_set);
dpu_error_t dpu_free(struct dpu_set_t dpu_set);
dpu_error_t dpu_get_nr_ranks(struct dpu_set_t dpu_set, uint32_t *nr_ranks);
dpu_error_t dpu_get_nr_dpus(struct dpu_set_t dpu_set, uint32_t *nr_dpus);

dpu_error_t dpu_load(struct dpu_set_t dpu_set, const char *binary_path, struct dpu_program_t **program);
dpu_error_t dpu_get_symbol(struct dpu_program_t *program, const char *symbol_name, struct dpu_symbol_t *symbol);
dpu_error_t dpu_launch(struct dpu_set_t dpu_set, dpu_launch_policy_t policy);
dpu_error_t dpu_status(struct dpu_set_t dpu_set, bool *done, bool *fault);
dpu_error_t dpu_sync(struct dpu_set_t dpu_set);

dpu_error_t dpu_copy_to(
    struct dpu_set_t dpu_set, const char *symbol_name, uint32_t symbol_offset, const void *src, size_t length);
dpu_error_t dpu_copy_from(
    struct dpu_set_t dpu_set, const char *symbol_name, uint32_t symbol_offset, void *dst, size_t length);
dpu_error_t dpu_broadcast_to(struct dpu_set_t dpu_set, const char *symbol_name, uint32_t symbol_offset, const void *src,
    size_t length, dpu_xfer_flags_t flags);
dpu_error_t dpu_prepare_xfer(struct dpu_set_t dpu_set, void *buffer);
dpu_error_t dpu_push_xfer(struct dpu_set_t dpu_set, dpu_xfer_t xfer, const char *symbol_name, uint32_t symbol_offset,
    size_t length, dpu_xfer_flags_t flags);

const char *dpu_error_to_string(dpu_error_t status);

struct dpu_set_dpu_iterator_t {
    struct dpu_set_t set;
    uint32_t count;
    struct dpu_set_t next;
    bool has_next;
};
struct dpu_set_dpu_iterator_t dpu_set_dpu_iterator_from(struct dpu_set_t *set);
void dpu_set_dpu_iterator_next(struct dpu_set_dpu_iterator_t *iterator);

#define _DPU_EACH(set, one)                                                                                            \
    for (struct dpu_set_dpu_iterator_t _dpu_it = dpu_set_dpu_iterator_from(&(set));                                    \
         _dpu_it.has_next && ((one) = _dpu_it.next, true); dpu_set_dpu_iterator_next(&_dpu_it))
#define _DPU_EACH_INDEX(set, one, index)                                                                               \
    for (struct dpu_set_dpu_iterator_t _dpu_it = dpu_set_dpu_iterator_from(&(set));                                    \
         _dpu_it.has_next && ((one) = _dpu_it.next, (index) = _dpu_it.count, true);                                    \
         dpu_set_dpu_iterator_next(&_dpu_it))
#define _DPU_PICK(_1, _2, _3, name, ...) name
/** DPU_FOREACH(set, dpu) or DPU_FOREACH(set, dpu, index). */
#define DPU_FOREACH(...) _DPU_PICK(__VA_ARGS__, _DPU_EACH_INDEX, _DPU_EACH, )(__VA_ARGS__)

#define DPU_ASSERT(statement)                                                                                          \
    do {                                                                                                               \
        dpu_error_t _dpu_error = (statement);                                                                          \
        if (_dpu_error != DPU_OK) {                                                                                    \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, dpu_error_to_string(_dpu_error));                       \
            exit(EXIT_FAILURE);                                                                                        \
        }                                                                                                              \
    } while (0)

#endif
