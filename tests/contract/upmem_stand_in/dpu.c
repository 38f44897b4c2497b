/* Functional stand-in for UPMEM's libdpu: the documented host API over units that this processor plays.
 *
 * A rank has 64 units, each with 64 MB of MRAM and 64 kB of WRAM of its own. A program is what the stand-in of
 * dpu-upmem-dpurte-clang makes: a shared object, whose variables are swapped in for the unit that runs. Its tasklets take
 * turns at each access of the MRAM and at each barrier, in another order on each unit. Limits are kept as documented: sizes
 * and alignments of transfers by the host and by a unit, what a symbol holds, what both memories hold. Time is not played.
 *
 * The profile is UPMEM's: `backend=hw|simulator` and `rankPath=/dev/dpu_rankN`, the device of a rank, which must open and
 * belong to nobody else. Without a path, `simulator` has UPMEM_STAND_IN_RANKS ranks (1), and `hw` those in /dev.
 * UPMEM_STAND_IN_DISABLED is how many units of each rank do not work, as in real DIMMs.
 */
#define _GNU_SOURCE
/* Tasklets have stacks of their own, between which longjmp goes: a check of its would not know them. */
#undef _FORTIFY_SOURCE
#include "dpu.h"
#include "program.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <setjmp.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>
#include <unistd.h>

#define DPUS_PER_RANK 64
#define MAX_RANKS 40
#define MRAM_SIZE (64u << 20)
#define WRAM_SIZE (64u << 10)
#define MAX_TASKLETS 24
#define MIN_DMA 8
#define MAX_DMA 2048
/* The host's functions want more stack than a unit's; what counts against the WRAM is the program's own number. */
#define HOST_STACK (64u << 10)

#define API __attribute__((visibility("default")))

struct dpu_program_t {
    void *handle;
    /* Stays open: the dynamic linker knows an object by its path, which is this number. */
    int memory;
    const struct stand_in_program *about;
    uint32_t wram_static, mram_static;
    char *pristine;
    uint32_t users;
};

struct dpu_t {
    struct dpu_rank_t *rank;
    struct dpu_program_t *program;
    uint8_t *mram;
    char *wram;
    /* The heap lies behind the program's variables and the stacks. */
    char *heap;
    uint32_t heap_used;
    void *prepared;
    bool pending, fault;
};

struct dpu_rank_t {
    int device;
    uint32_t working;
    struct dpu_t dpus[DPUS_PER_RANK];
};

enum wait { READY, WAITING, DONE };

/* The unit that runs. There is one at a time: programs lie in this process once. */
static struct {
    struct dpu_t *dpu;
    jmp_buf scheduler, tasklets[MAX_TASKLETS];
    bool started[MAX_TASKLETS];
    char *stacks;
    enum wait state[MAX_TASKLETS];
    uint32_t current;
    bool fault;
} run;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t simulated_ranks_taken;

/* --- a unit ------------------------------------------------------------------------------------------------------- */

/* Not swapcontext: it asks the kernel for the signal mask each time. */
static void leave(enum wait state) {
    uint32_t tasklet = run.current;
    run.state[tasklet] = state;
    if (_setjmp(run.tasklets[tasklet]) == 0)
        _longjmp(run.scheduler, 1);
}

static void fault(const char *why) {
    fprintf(stderr, "dpu stand-in: tasklet %u: %s\n", run.current, why);
    run.fault = true;
    leave(DONE);
}

static uint32_t unit_me(void) { return run.current; }

static void unit_yield(int waits) { leave(waits ? WAITING : READY); }

static bool in_wram(const char *at, uint32_t size) {
    const struct stand_in_program *about = run.dpu->program->about;
    const char *stack = run.stacks + (size_t)run.current * HOST_STACK;
    const char *places[][2] = {
        {about->wram_begin, about->wram_end}, {stack, stack + HOST_STACK}, {run.dpu->heap, run.dpu->heap + run.dpu->heap_used}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (at >= places[i][0] && at + size <= places[i][1])
            return true;
    return false;
}

/* The unit's memory at an address of the program, or NULL after a fault. */
static uint8_t *dma(const char *mram, const char *wram, uint32_t size) {
    const struct stand_in_program *about = run.dpu->program->about;
    uintptr_t offset = (uintptr_t)mram - (uintptr_t)about->mram_begin;
    leave(READY);
    if (size < MIN_DMA || size > MAX_DMA || size % 8)
        fault("a transfer is not of 8 to 2048 bytes, or not a multiple of 8");
    else if (offset % 8 || (uintptr_t)wram % 8)
        fault("a transfer is not aligned on 8 bytes");
    else if (offset + size > MRAM_SIZE)
        fault("a transfer goes beyond the MRAM");
    else if (!in_wram(wram, size))
        fault("a transfer goes beyond the WRAM");
    return run.dpu->mram + offset;
}

static void unit_read(const void *from, void *to, uint32_t size) { memcpy(to, dma(from, to, size), size); }

static void unit_write(const void *from, void *to, uint32_t size) { memcpy(dma(to, from, size), from, size); }

static uint32_t heap_size(const struct dpu_program_t *program) {
    return WRAM_SIZE - program->wram_static - program->about->tasklets * program->about->stack_size;
}

static void *unit_alloc(uint64_t size) {
    uint64_t wanted = (size + 7) / 8 * 8;
    if (wanted > heap_size(run.dpu->program) - run.dpu->heap_used) {
        fault("the heap in the WRAM is full");
    }
    char *given = run.dpu->heap + run.dpu->heap_used;
    run.dpu->heap_used += (uint32_t)wanted;
    return given;
}

static void unit_reset(void) { run.dpu->heap_used = 0; }

static const struct stand_in_unit unit = {unit_me, unit_read, unit_write, unit_alloc, unit_reset, unit_yield};

static void tasklet(void) {
    for (;;) {
        run.dpu->program->about->main();
        leave(DONE);
    }
}

/* Lets a tasklet go on until it leaves. Its stack is made once, and again only after a fault in the middle of it. */
static __attribute__((noinline)) void resume(uint32_t which) {
    static ucontext_t first, unused;
    run.current = which;
    if (_setjmp(run.scheduler) != 0)
        return;
    if (run.started[which])
        _longjmp(run.tasklets[which], 1);
    run.started[which] = true;
    getcontext(&first);
    first.uc_stack.ss_sp = run.stacks + (size_t)which * HOST_STACK;
    first.uc_stack.ss_size = HOST_STACK;
    makecontext(&first, tasklet, 0);
    swapcontext(&unused, &first);
}

/* Runs a unit's program to its end. */
static void execute(struct dpu_t *dpu) {
    const struct stand_in_program *about = dpu->program->about;
    uint32_t first = (uint32_t)(dpu - dpu->rank->dpus), left = about->tasklets;
    run.dpu = dpu;
    run.fault = false;
    if (run.stacks == NULL) {
        run.stacks = mmap(NULL, (size_t)MAX_TASKLETS * HOST_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (run.stacks == MAP_FAILED)
            abort();
    }
    memcpy(about->wram_begin, dpu->wram, dpu->program->wram_static);
    for (uint32_t i = 0; i < about->tasklets; i++)
        run.state[i] = READY;
    while (left && !run.fault) {
        bool moved = false;
        for (uint32_t i = 0; i < about->tasklets && !run.fault; i++) {
            uint32_t which = (first + i) % about->tasklets;
            if (run.state[which] == DONE)
                continue;
            resume(which);
            moved |= run.state[which] != WAITING;
            left -= run.state[which] == DONE;
        }
        if (left && !moved && !run.fault) {
            fprintf(stderr, "dpu stand-in: %u tasklets wait for each other\n", left);
            run.fault = true;
        }
    }
    if (run.fault)
        memset(run.started, 0, sizeof run.started);
    memcpy(dpu->wram, about->wram_begin, dpu->program->wram_static);
    dpu->fault = run.fault;
}

/* --- sets --------------------------------------------------------------------------------------------------------- */

API struct dpu_set_dpu_iterator_t dpu_set_dpu_iterator_from(struct dpu_set_t *set) {
    struct dpu_set_dpu_iterator_t iterator = {.set = *set, .count = (uint32_t)-1, .has_next = true};
    dpu_set_dpu_iterator_next(&iterator);
    return iterator;
}

API void dpu_set_dpu_iterator_next(struct dpu_set_dpu_iterator_t *iterator) {
    uint32_t wanted = ++iterator->count;
    iterator->next.kind = DPU_SET_DPU;
    iterator->has_next = false;
    if (iterator->set.kind == DPU_SET_DPU) {
        iterator->next.dpu = iterator->set.dpu;
        iterator->has_next = wanted == 0;
        return;
    }
    for (uint32_t i = 0; i < iterator->set.list.nr_ranks; i++) {
        struct dpu_rank_t *rank = iterator->set.list.ranks[i];
        if (wanted < rank->working) {
            iterator->next.dpu = &rank->dpus[wanted];
            iterator->has_next = true;
            return;
        }
        wanted -= rank->working;
    }
}

struct profile {
    bool simulated;
    char path[256];
};

static dpu_error_t read_profile(const char *text, struct profile *profile) {
    char copy[512], *rest = copy, *part;
    memset(profile, 0, sizeof *profile);
    if (text == NULL)
        return DPU_OK;
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return DPU_ERR_INVALID_PROFILE;
    while ((part = strsep(&rest, ",")) != NULL) {
        char *value = strchr(part, '=');
        if (*part == '\0')
            continue;
        if (value == NULL)
            return DPU_ERR_INVALID_PROFILE;
        *value++ = '\0';
        if (strcmp(part, "backend") == 0) {
            profile->simulated = strcmp(value, "simulator") == 0;
            if (!profile->simulated && strcmp(value, "hw") != 0)
                return DPU_ERR_INVALID_PROFILE;
        } else if (strcmp(part, "rankPath") == 0 && snprintf(profile->path, sizeof profile->path, "%s", value) >= (int)sizeof profile->path)
            return DPU_ERR_INVALID_PROFILE;
    }
    return DPU_OK;
}

static uint32_t number(const char *variable, uint32_t otherwise) {
    const char *text = getenv(variable);
    return text == NULL ? otherwise : (uint32_t)strtoul(text, NULL, 10);
}

static int open_rank(const char *path) {
    struct stat found;
    int device = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (device >= 0 && (fstat(device, &found) != 0 || !S_ISCHR(found.st_mode) || flock(device, LOCK_EX | LOCK_NB) != 0)) {
        close(device);
        device = -1;
    }
    return device;
}

static void release(struct dpu_program_t *program) {
    if (program == NULL || --program->users)
        return;
    dlclose(program->handle);
    close(program->memory);
    free(program->pristine);
    free(program);
}

static void free_rank(struct dpu_rank_t *rank) {
    for (uint32_t i = 0; i < rank->working; i++) {
        struct dpu_t *dpu = &rank->dpus[i];
        release(dpu->program);
        if (dpu->mram != NULL)
            munmap(dpu->mram, MRAM_SIZE);
        free(dpu->wram);
        free(dpu->heap);
    }
    if (rank->device >= 0)
        close(rank->device);
    else
        simulated_ranks_taken--;
    free(rank);
}

static struct dpu_rank_t *new_rank(int device) {
    struct dpu_rank_t *rank = calloc(1, sizeof *rank);
    if (rank == NULL)
        return NULL;
    uint32_t disabled = number("UPMEM_STAND_IN_DISABLED", 0);
    rank->device = device;
    rank->working = DPUS_PER_RANK - (disabled < DPUS_PER_RANK ? disabled : DPUS_PER_RANK);
    for (uint32_t i = 0; i < rank->working; i++) {
        struct dpu_t *dpu = &rank->dpus[i];
        dpu->rank = rank;
        dpu->wram = calloc(1, WRAM_SIZE);
        dpu->heap = aligned_alloc(8, WRAM_SIZE);
        dpu->mram = mmap(NULL, MRAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (dpu->mram == MAP_FAILED || dpu->wram == NULL || dpu->heap == NULL)
            abort();
    }
    return rank;
}

static struct dpu_rank_t *take_rank(const struct profile *profile) {
    int device = -1;
    if (profile->path[0] != '\0') {
        if ((device = open_rank(profile->path)) < 0)
            return NULL;
    } else if (profile->simulated) {
        if (simulated_ranks_taken >= number("UPMEM_STAND_IN_RANKS", 1))
            return NULL;
        simulated_ranks_taken++;
    } else {
        char path[32];
        for (int i = 0; i < MAX_RANKS && device < 0; i++) {
            snprintf(path, sizeof path, "/dev/dpu_rank%d", i);
            device = open_rank(path);
        }
        if (device < 0)
            return NULL;
    }
    return new_rank(device);
}

API dpu_error_t dpu_alloc_ranks(uint32_t nr_ranks, const char *profile, struct dpu_set_t *dpu_set) {
    struct profile wanted;
    dpu_error_t error = read_profile(profile, &wanted);
    if (error != DPU_OK)
        return error;
    bool all = nr_ranks == DPU_ALLOCATE_ALL;
    if (nr_ranks == 0 || (!all && nr_ranks > MAX_RANKS))
        return DPU_ERR_ALLOCATION;
    struct dpu_rank_t **ranks = calloc(MAX_RANKS, sizeof *ranks);
    if (ranks == NULL)
        return DPU_ERR_SYSTEM;
    uint32_t taken = 0;
    pthread_mutex_lock(&lock);
    while (taken < MAX_RANKS && (all || taken < nr_ranks) && (ranks[taken] = take_rank(&wanted)) != NULL)
        taken++;
    if (taken == 0 || (!all && taken < nr_ranks)) {
        while (taken)
            free_rank(ranks[--taken]);
        free(ranks);
        error = DPU_ERR_ALLOCATION;
    } else {
        dpu_set->kind = DPU_SET_RANKS;
        dpu_set->list.nr_ranks = taken;
        dpu_set->list.ranks = ranks;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

API dpu_error_t dpu_alloc(uint32_t nr_dpus, const char *profile, struct dpu_set_t *dpu_set) {
    if (nr_dpus == DPU_ALLOCATE_ALL)
        return dpu_alloc_ranks(nr_dpus, profile, dpu_set);
    dpu_error_t error = dpu_alloc_ranks((nr_dpus + DPUS_PER_RANK - 1) / DPUS_PER_RANK, profile, dpu_set);
    if (error != DPU_OK)
        return error;
    uint32_t left = nr_dpus;
    for (uint32_t i = 0; i < dpu_set->list.nr_ranks; i++) {
        struct dpu_rank_t *rank = dpu_set->list.ranks[i];
        for (; rank->working > left; rank->working--) {
            munmap(rank->dpus[rank->working - 1].mram, MRAM_SIZE);
            free(rank->dpus[rank->working - 1].wram);
            free(rank->dpus[rank->working - 1].heap);
        }
        left -= rank->working;
    }
    if (left == 0)
        return DPU_OK;
    dpu_free(*dpu_set);
    return DPU_ERR_ALLOCATION;
}

API dpu_error_t dpu_free(struct dpu_set_t dpu_set) {
    if (dpu_set.kind != DPU_SET_RANKS)
        return DPU_ERR_INVALID_DPU_SET;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < dpu_set.list.nr_ranks; i++)
        free_rank(dpu_set.list.ranks[i]);
    free(dpu_set.list.ranks);
    pthread_mutex_unlock(&lock);
    return DPU_OK;
}

API dpu_error_t dpu_get_nr_ranks(struct dpu_set_t dpu_set, uint32_t *nr_ranks) {
    *nr_ranks = dpu_set.kind == DPU_SET_RANKS ? dpu_set.list.nr_ranks : 1;
    return DPU_OK;
}

API dpu_error_t dpu_get_nr_dpus(struct dpu_set_t dpu_set, uint32_t *nr_dpus) {
    *nr_dpus = dpu_set.kind == DPU_SET_DPU;
    for (uint32_t i = 0; dpu_set.kind == DPU_SET_RANKS && i < dpu_set.list.nr_ranks; i++)
        *nr_dpus += dpu_set.list.ranks[i]->working;
    return DPU_OK;
}

/* --- programs ----------------------------------------------------------------------------------------------------- */

/* Each load is an object of its own: variables begin as they were compiled, and another load does not see them. */
static dpu_error_t open_program(const char *path, struct dpu_program_t **result) {
    char header[sizeof(ElfW(Ehdr))], copy[64], buffer[1 << 16];
    int source = open(path, O_RDONLY | O_CLOEXEC);
    if (source < 0)
        return DPU_ERR_ELF_NO_SUCH_FILE;
    int memory = memfd_create("dpu-program", MFD_CLOEXEC);
    ssize_t got;
    while (memory >= 0 && (got = read(source, buffer, sizeof buffer)) > 0)
        if (write(memory, buffer, (size_t)got) != got)
            break;
    close(source);
    if (memory < 0)
        return DPU_ERR_SYSTEM;
    bool elf = pread(memory, header, sizeof header, 0) == sizeof header && memcmp(header, ELFMAG, SELFMAG) == 0;
    snprintf(copy, sizeof copy, "/proc/self/fd/%d", memory);
    void *handle = elf ? dlopen(copy, RTLD_NOW | RTLD_LOCAL) : NULL;
    const struct stand_in_program *about = handle == NULL ? NULL : dlsym(handle, STAND_IN_SYMBOL);
    if (about == NULL || about->abi != STAND_IN_ABI || about->tasklets == 0 || about->tasklets > MAX_TASKLETS) {
        if (handle != NULL)
            dlclose(handle);
        close(memory);
        return DPU_ERR_ELF_INVALID_FILE;
    }
    struct dpu_program_t *program = calloc(1, sizeof *program);
    if (program == NULL)
        abort();
    program->handle = handle;
    program->memory = memory;
    program->about = about;
    program->wram_static = (uint32_t)(about->wram_end - about->wram_begin);
    program->mram_static = (uint32_t)(about->mram_end - about->mram_begin);
    if (about->mram_end - about->mram_begin > MRAM_SIZE ||
        (uint64_t)program->wram_static + (uint64_t)about->tasklets * about->stack_size > WRAM_SIZE) {
        dlclose(handle);
        close(memory);
        free(program);
        return DPU_ERR_ELF_INVALID_FILE;
    }
    *about->unit = &unit;
    program->pristine = malloc(program->wram_static + 1);
    memcpy(program->pristine, about->wram_begin, program->wram_static);
    *result = program;
    return DPU_OK;
}

API dpu_error_t dpu_load(struct dpu_set_t dpu_set, const char *binary_path, struct dpu_program_t **result) {
    struct dpu_program_t *program;
    struct dpu_set_t one;
    pthread_mutex_lock(&lock);
    dpu_error_t error = open_program(binary_path, &program);
    if (error == DPU_OK) {
        DPU_FOREACH (dpu_set, one) {
            release(one.dpu->program);
            program->users++;
            one.dpu->program = program;
            one.dpu->heap_used = 0;
            one.dpu->fault = one.dpu->pending = false;
            memcpy(one.dpu->wram, program->pristine, program->wram_static);
        }
        if (result != NULL)
            *result = program;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

struct place {
    bool mram;
    uint32_t offset, size;
};

static dpu_error_t find(const struct dpu_program_t *program, const char *name, struct place *place) {
    const struct stand_in_program *about = program->about;
    if (strcmp(name, DPU_MRAM_HEAP_POINTER_NAME) == 0) {
        *place = (struct place){true, program->mram_static, MRAM_SIZE - program->mram_static};
        return DPU_OK;
    }
    Dl_info info;
    ElfW(Sym) *symbol = NULL;
    char *at = dlsym(program->handle, name);
    if (at == NULL || dladdr1(at, &info, (void **)&symbol, RTLD_DL_SYMENT) == 0 || symbol == NULL)
        return DPU_ERR_UNKNOWN_SYMBOL;
    bool mram = at >= about->mram_begin && at < about->mram_end;
    if (!mram && !(at >= about->wram_begin && at < about->wram_end))
        return DPU_ERR_UNKNOWN_SYMBOL;
    *place = (struct place){mram, (uint32_t)(at - (mram ? about->mram_begin : about->wram_begin)), (uint32_t)symbol->st_size};
    return DPU_OK;
}

API dpu_error_t dpu_get_symbol(struct dpu_program_t *program, const char *symbol_name, struct dpu_symbol_t *symbol) {
    struct place place;
    dpu_error_t error = find(program, symbol_name, &place);
    if (error == DPU_OK)
        *symbol = (struct dpu_symbol_t){(place.mram ? 0x08000000u : 0) + place.offset, place.size};
    return error;
}

static void finish(struct dpu_t *dpu) {
    if (dpu->pending) {
        dpu->pending = false;
        execute(dpu);
    }
}

API dpu_error_t dpu_sync(struct dpu_set_t dpu_set) {
    struct dpu_set_t one;
    dpu_error_t error = DPU_OK;
    pthread_mutex_lock(&lock);
    DPU_FOREACH (dpu_set, one) {
        finish(one.dpu);
        if (one.dpu->fault)
            error = DPU_ERR_DPU_FAULT;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

API dpu_error_t dpu_launch(struct dpu_set_t dpu_set, dpu_launch_policy_t policy) {
    struct dpu_set_t one;
    if (policy != DPU_SYNCHRONOUS && policy != DPU_ASYNCHRONOUS)
        return DPU_ERR_INVALID_LAUNCH_POLICY;
    DPU_FOREACH (dpu_set, one) {
        if (one.dpu->program == NULL)
            return DPU_ERR_NO_PROGRAM_LOADED;
        if (one.dpu->pending)
            return DPU_ERR_DPU_ALREADY_RUNNING;
        if (one.dpu->fault)
            return DPU_ERR_DPU_FAULT;
    }
    DPU_FOREACH (dpu_set, one)
        one.dpu->pending = true;
    return policy == DPU_SYNCHRONOUS ? dpu_sync(dpu_set) : DPU_OK;
}

API dpu_error_t dpu_status(struct dpu_set_t dpu_set, bool *done, bool *fault_found) {
    struct dpu_set_t one;
    *done = true;
    *fault_found = false;
    DPU_FOREACH (dpu_set, one) {
        *done &= !one.dpu->pending;
        *fault_found |= one.dpu->fault;
    }
    return DPU_OK;
}

/* --- transfers ---------------------------------------------------------------------------------------------------- */

static dpu_error_t transfer(
    struct dpu_t *dpu, dpu_xfer_t way, const char *name, uint32_t offset, void *buffer, size_t length) {
    struct place place;
    if (dpu->program == NULL)
        return DPU_ERR_NO_PROGRAM_LOADED;
    dpu_error_t error = find(dpu->program, name, &place);
    if (error != DPU_OK)
        return error;
    if (offset > place.size || length > place.size - offset)
        return DPU_ERR_INVALID_SYMBOL_ACCESS;
    uint32_t at = place.offset + offset, grain = place.mram ? 8 : 4;
    if (at % grain || length % grain)
        return place.mram ? DPU_ERR_INVALID_MRAM_ACCESS : DPU_ERR_INVALID_WRAM_ACCESS;
    finish(dpu);
    char *memory = place.mram ? (char *)dpu->mram + at : dpu->wram + at;
    if (way == DPU_XFER_TO_DPU)
        memcpy(memory, buffer, length);
    else
        memcpy(buffer, memory, length);
    return DPU_OK;
}

static dpu_error_t to_all(struct dpu_set_t dpu_set, const char *name, uint32_t offset, const void *src, size_t length) {
    struct dpu_set_t one;
    dpu_error_t error = DPU_OK;
    pthread_mutex_lock(&lock);
    DPU_FOREACH (dpu_set, one)
        if (error == DPU_OK)
            error = transfer(one.dpu, DPU_XFER_TO_DPU, name, offset, (void *)src, length);
    pthread_mutex_unlock(&lock);
    return error;
}

API dpu_error_t dpu_copy_to(
    struct dpu_set_t dpu_set, const char *symbol_name, uint32_t symbol_offset, const void *src, size_t length) {
    return to_all(dpu_set, symbol_name, symbol_offset, src, length);
}

API dpu_error_t dpu_broadcast_to(struct dpu_set_t dpu_set, const char *symbol_name, uint32_t symbol_offset, const void *src,
    size_t length, dpu_xfer_flags_t flags) {
    (void)flags;
    return to_all(dpu_set, symbol_name, symbol_offset, src, length);
}

API dpu_error_t dpu_copy_from(
    struct dpu_set_t dpu_set, const char *symbol_name, uint32_t symbol_offset, void *dst, size_t length) {
    if (dpu_set.kind != DPU_SET_DPU)
        return DPU_ERR_INVALID_DPU_SET;
    pthread_mutex_lock(&lock);
    dpu_error_t error = transfer(dpu_set.dpu, DPU_XFER_FROM_DPU, symbol_name, symbol_offset, dst, length);
    pthread_mutex_unlock(&lock);
    return error;
}

API dpu_error_t dpu_prepare_xfer(struct dpu_set_t dpu_set, void *buffer) {
    struct dpu_set_t one;
    DPU_FOREACH (dpu_set, one) {
        if (one.dpu->prepared != NULL)
            return DPU_ERR_TRANSFER_ALREADY_SET;
    }
    DPU_FOREACH (dpu_set, one)
        one.dpu->prepared = buffer;
    return DPU_OK;
}

API dpu_error_t dpu_push_xfer(struct dpu_set_t dpu_set, dpu_xfer_t xfer, const char *symbol_name, uint32_t symbol_offset,
    size_t length, dpu_xfer_flags_t flags) {
    struct dpu_set_t one;
    dpu_error_t error = DPU_OK;
    if (xfer != DPU_XFER_TO_DPU && xfer != DPU_XFER_FROM_DPU)
        return DPU_ERR_INVALID_MEMORY_TRANSFER;
    pthread_mutex_lock(&lock);
    DPU_FOREACH (dpu_set, one) {
        if (error == DPU_OK && one.dpu->prepared != NULL)
            error = transfer(one.dpu, xfer, symbol_name, symbol_offset, one.dpu->prepared, length);
        if (!(flags & DPU_XFER_NO_RESET))
            one.dpu->prepared = NULL;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

API const char *dpu_error_to_string(dpu_error_t status) {
    static const char *const words[] = {"success", "internal error", "system error", "driver error", "allocation error",
        "invalid dpu set", "invalid thread id", "invalid notify id", "invalid wram access", "invalid iram access",
        "invalid mram access", "invalid memory symbol access", "mram is unavailable", "dpu transfer is already set",
        "no program has been loaded", "dpus with different programs", "corrupted memory", "dpu is disabled",
        "dpu is already running", "invalid memory transfer", "invalid launch policy", "dpu is in fault",
        "invalid ELF file", "no such ELF file", "no such ELF section", "timeout", "invalid profile", "undefined symbol"};
    return (size_t)status < sizeof words / sizeof *words ? words[status] : "unknown error";
}
