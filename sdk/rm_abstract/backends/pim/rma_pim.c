/* librma_pim: the host's side of gemv_int8.c, over UPMEM's host API. Built where the SDK is:
 *
 *   gcc -O2 -shared -fPIC -DSDK_VERSION='"2025.1.0"' rma_pim.c $(dpu-pkg-config --cflags --libs dpu) -o librma_pim.so
 *
 * Functions return a number of enum rma_pim_result, and say in `why` what went wrong. One thread at a time may use a pim.
 */
#include <dpu.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef SDK_VERSION
#define SDK_VERSION "unknown"
#endif
#define API __attribute__((visibility("default")))

enum rma_pim_result {
    RMA_PIM_OK,
    RMA_PIM_NO_DEVICE, /* a rank cannot be had, or lacks units */
    RMA_PIM_PROGRAM,   /* the program cannot be loaded, or is another one */
    RMA_PIM_FAILED
};

struct why {
    char *text;
    size_t size;
};

struct rma_pim {
    uint32_t ranks, per_rank;
    struct dpu_set_t *sets;
    uint32_t most_vectors, input_bytes, weight_bytes, product_bytes;
};

struct task {
    uint32_t offset, rows, columns, vectors;
};

static int say(struct why why, int result, const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    vsnprintf(why.text, why.size, format, rest);
    va_end(rest);
    return result;
}

static int check(struct why why, dpu_error_t error, const char *what) {
    return error == DPU_OK ? RMA_PIM_OK : say(why, RMA_PIM_FAILED, "%s: %s", what, dpu_error_to_string(error));
}

API const char *rma_pim_sdk_version(void) { return SDK_VERSION; }

API void rma_pim_close(struct rma_pim *pim) {
    if (pim == NULL)
        return;
    for (uint32_t i = 0; i < pim->ranks; i++)
        dpu_free(pim->sets[i]);
    free(pim->sets);
    free(pim);
}

static int size_of(struct why why, struct dpu_program_t *program, const char *name, uint32_t *size) {
    struct dpu_symbol_t symbol;
    dpu_error_t error = dpu_get_symbol(program, name, &symbol);
    if (error != DPU_OK)
        return say(why, RMA_PIM_PROGRAM, "the program has no %s: %s", name, dpu_error_to_string(error));
    *size = symbol.size;
    return RMA_PIM_OK;
}

static int load(struct rma_pim *pim, uint32_t rank, const char *path, const char *program_path, struct why why) {
    char profile[320];
    struct dpu_program_t *program;
    struct dpu_set_t *set = &pim->sets[rank], one;
    uint32_t units = 0;
    if (snprintf(profile, sizeof profile, "backend=hw,rankPath=%s", path) >= (int)sizeof profile)
        return say(why, RMA_PIM_NO_DEVICE, "the path of a rank is too long: %s", path);
    dpu_error_t error = dpu_alloc_ranks(1, profile, set);
    if (error != DPU_OK)
        return say(why, RMA_PIM_NO_DEVICE, "%s cannot be allocated (%s); does somebody else use it?", path, dpu_error_to_string(error));
    pim->ranks++;
    dpu_get_nr_dpus(*set, &units);
    if (units < pim->per_rank)
        return say(why, RMA_PIM_NO_DEVICE, "%s has %u units that work, and %u are needed", path, units, pim->per_rank);
    if ((error = dpu_load(*set, program_path, &program)) != DPU_OK)
        return say(why, RMA_PIM_PROGRAM, "%s cannot be loaded: %s", program_path, dpu_error_to_string(error));
    uint32_t task_size = 0;
    int result = size_of(why, program, "task", &task_size);
    if (result == RMA_PIM_OK && task_size != sizeof(struct task))
        return say(why, RMA_PIM_PROGRAM, "%s is another program: its task has %u bytes", program_path, task_size);
    if (result == RMA_PIM_OK)
        result = size_of(why, program, "inputs", &pim->input_bytes);
    if (result == RMA_PIM_OK)
        result = size_of(why, program, "weights", &pim->weight_bytes);
    if (result == RMA_PIM_OK)
        result = size_of(why, program, "products", &pim->product_bytes);
    if (result != RMA_PIM_OK)
        return result;
    DPU_FOREACH (*set, one) {
        error = dpu_copy_from(one, "most_vectors", 0, &pim->most_vectors, sizeof pim->most_vectors);
        break;
    }
    return check(why, error, "reading most_vectors");
}

/* Takes the ranks at `paths` and loads the program into all their units; the first `per_rank` of each are used. */
API int rma_pim_open(uint32_t ranks, const char *const *paths, uint32_t per_rank, const char *program,
    struct rma_pim **result, char *text, size_t size) {
    struct why why = {text, size};
    struct rma_pim *pim = calloc(1, sizeof *pim);
    *result = NULL;
    if (pim == NULL || (pim->sets = calloc(ranks, sizeof *pim->sets)) == NULL) {
        free(pim);
        return say(why, RMA_PIM_FAILED, "no memory");
    }
    pim->per_rank = per_rank;
    for (uint32_t i = 0; i < ranks; i++) {
        int code = load(pim, i, paths[i], program, why);
        if (code != RMA_PIM_OK) {
            rma_pim_close(pim);
            return code;
        }
    }
    *result = pim;
    return RMA_PIM_OK;
}

/* Lays down `bytes` in each unit; `image` has those of the first unit of the first rank first. */
API int rma_pim_write(struct rma_pim *pim, const uint8_t *image, uint64_t bytes, char *text, size_t size) {
    struct why why = {text, size};
    struct dpu_set_t one;
    uint32_t index;
    if (bytes > pim->weight_bytes)
        return say(why, RMA_PIM_PROGRAM, "a unit is to hold %llu bytes of weights, and the program has room for %u",
            (unsigned long long)bytes, pim->weight_bytes);
    for (uint32_t rank = 0; rank < pim->ranks; rank++) {
        const uint8_t *part = image + (uint64_t)rank * pim->per_rank * bytes;
        DPU_FOREACH (pim->sets[rank], one, index) {
            if (index < pim->per_rank) {
                dpu_error_t error = dpu_prepare_xfer(one, (void *)(part + index * bytes));
                if (error != DPU_OK)
                    return check(why, error, "preparing the weights");
            }
        }
        dpu_error_t error = dpu_push_xfer(pim->sets[rank], DPU_XFER_TO_DPU, "weights", 0, bytes, DPU_XFER_DEFAULT);
        if (error != DPU_OK)
            return check(why, error, "laying down the weights");
    }
    return RMA_PIM_OK;
}

/* As many vectors as one launch takes; 0 where not even one fits. */
static uint32_t at_once(const struct rma_pim *pim, uint32_t rows, uint32_t columns) {
    uint32_t most = pim->most_vectors;
    if (most > pim->input_bytes / columns)
        most = pim->input_bytes / columns;
    if (most > pim->product_bytes / sizeof(int32_t) / rows)
        most = pim->product_bytes / sizeof(int32_t) / rows;
    return most;
}

static int launch(struct rma_pim *pim, struct task task, const int8_t *vectors, int32_t *products, uint32_t total, struct why why) {
    struct dpu_set_t one;
    uint32_t index;
    int result = RMA_PIM_OK;
    for (uint32_t rank = 0; rank < pim->ranks && result == RMA_PIM_OK; rank++) {
        struct dpu_set_t set = pim->sets[rank];
        size_t bytes = (size_t)task.vectors * task.columns;
        result = check(why, dpu_broadcast_to(set, "task", 0, &task, sizeof task, DPU_XFER_DEFAULT), "writing the task");
        if (result == RMA_PIM_OK)
            result = check(why, dpu_broadcast_to(set, "inputs", 0, vectors, bytes, DPU_XFER_DEFAULT), "writing the vectors");
        if (result == RMA_PIM_OK)
            result = check(why, dpu_launch(set, DPU_ASYNCHRONOUS), "launching");
    }
    for (uint32_t rank = 0; rank < pim->ranks && result == RMA_PIM_OK; rank++)
        result = check(why, dpu_sync(pim->sets[rank]), "running the product");
    for (uint32_t rank = 0; rank < pim->ranks && result == RMA_PIM_OK; rank++) {
        size_t share = (size_t)task.vectors * task.rows;
        DPU_FOREACH (pim->sets[rank], one, index) {
            int32_t *place = products + ((size_t)rank * pim->per_rank + index) * total * task.rows;
            if (index < pim->per_rank && result == RMA_PIM_OK)
                result = check(why, dpu_prepare_xfer(one, place), "preparing the products");
        }
        if (result == RMA_PIM_OK)
            result = check(why,
                dpu_push_xfer(pim->sets[rank], DPU_XFER_FROM_DPU, "products", 0, share * sizeof(int32_t), DPU_XFER_DEFAULT),
                "reading the products");
    }
    return result;
}

/* Multiplies the matrix at `offset` with vectors, [vectors][columns]. The products are [unit][vectors][rows]; every unit
 * has `rows` rows, an even number, and `columns` is a multiple of 8. */
API int rma_pim_multiply(struct rma_pim *pim, uint32_t offset, uint32_t rows, uint32_t columns, uint32_t vectors,
    const int8_t *input, int32_t *products, char *text, size_t size) {
    struct why why = {text, size};
    if (rows == 0 || rows % 2 || columns == 0 || columns % 8 || at_once(pim, rows, columns) == 0)
        return say(why, RMA_PIM_PROGRAM, "%u rows of %u columns are more than the program has room for", rows, columns);
    uint32_t most = at_once(pim, rows, columns);
    for (uint32_t begin = 0; begin < vectors; begin += most) {
        struct task task = {offset, rows, columns, vectors - begin < most ? vectors - begin : most};
        int result = launch(pim, task, input + (size_t)begin * columns, products + (size_t)begin * rows, vectors, why);
        if (result != RMA_PIM_OK)
            return result;
    }
    return RMA_PIM_OK;
}
