/*
 * Stand-in for NVIDIA's libnvidia-ml.so.1: the functions that the plugin calls, with the signatures and return codes that
 * NVML documents, over a text file that the test writes. The driver and the silicon are not there; NVML's interface is.
 *
 * File named by NVML_STAND_IN: first line "DRIVER init-code"; then one line a GPU:
 *   uuid serial minor busId recovery-action(-1: unknown to the driver) lost(0|1)
 * File named by NVML_STAND_IN_XIDS: a line "index xid" an event, or "index xid gi=N" for one of a MIG instance, consumed
 * once. File named by NVML_STAND_IN_MORE, if any, a fact a line; what is not named is "not supported", or none:
 *   mig GPU 0|1                     whether MIG is on
 *   part GPU uuid place gi ci profile    an instance; "-" for a profile that the name does not tell
 *   watts GPU milliwatts|hang
 *   process GPU|uuid pid            computes on the GPU, or on the instance
 *   memory GPU|uuid MiB             that programs hold
 *   remap GPU 0|1                   whether the remapping of rows failed
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define DRIVER_NOT_LOADED 9
#define TIMEOUT 10
#define GPU_IS_LOST 15
#define PARTS 1000 /* handles of instances begin here */

struct gpu { char uuid[80], serial[32], bus[32]; unsigned minor; int action, lost; };
struct pci { char legacy[16]; unsigned domain, bus, device, pciDevice, subsystem; char busId[32]; };
struct field { unsigned id, scope; long long at, latency; int type, ret; union { double d; unsigned u; unsigned long long ull; } value; };
struct event { void *device; unsigned long long type, data; unsigned gi, ci; };

struct part { char uuid[80], profile[32]; int gpu, place; unsigned gi, ci; };
struct memory { unsigned version; unsigned long long total, reserved, free, used; };
struct process { unsigned pid; unsigned long long memory; unsigned gi, ci; };

static struct gpu gpus[16];
static struct part parts[16];
static char driver[80];
static int init_code;
static int count;
static int consumed;

static void read_state(void) {
    FILE *f = fopen(getenv("NVML_STAND_IN"), "r");
    count = 0;
    if (!f) return;
    if (fscanf(f, "%79s %d", driver, &init_code) == 2)
        while (count < 16) {
            struct gpu *g = &gpus[count];
            if (fscanf(f, "%79s %31s %u %31s %d %d", g->uuid, g->serial, &g->minor, g->bus, &g->action, &g->lost) != 6) break;
            count++;
        }
    fclose(f);
}

static struct gpu *of(void *handle) { return &gpus[(long)handle - 1]; }
static struct part *part_of(void *handle) { return (long)handle >= PARTS ? &parts[(long)handle - PARTS] : NULL; }

/* The value of "what who value" in the further facts; the nth of them. */
static int fact(const char *what, const char *who, int nth, char value[80]) {
    char line[256], a[32], b[80];
    const char *name = getenv("NVML_STAND_IN_MORE");
    FILE *f = name ? fopen(name, "r") : NULL;
    int found = 0;
    while (f && !found && fgets(line, sizeof line, f))
        if (sscanf(line, "%31s %79s %79s", a, b, value) == 3 && !strcmp(a, what) && !strcmp(b, who) && !nth--) found = 1;
    if (f) fclose(f);
    return found;
}
static int fact_of(const char *what, void *handle, int nth, char value[80]) {
    char index[24];
    if (part_of(handle)) return fact(what, part_of(handle)->uuid, nth, value);
    snprintf(index, sizeof index, "%ld", (long)handle - 1);
    return fact(what, index, nth, value);
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; read_state(); return init_code; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) {
    switch (code) {
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case NOT_SUPPORTED: return "Not Supported";
    case TIMEOUT: return "Timeout";
    default: return "Unknown Error";
    }
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) { read_state(); snprintf(out, size, "%s", driver); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *out) { read_state(); *out = count; return init_code; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    if ((int)index >= count) return NOT_FOUND;
    if (gpus[index].lost) return GPU_IS_LOST;
    *out = (void *)(long)(index + 1);
    return SUCCESS;
}
int nvmlDeviceGetUUID(void *h, char *out, unsigned size) {
    snprintf(out, size, "%s", part_of(h) ? part_of(h)->uuid : of(h)->uuid);
    return SUCCESS;
}
int nvmlDeviceGetName(void *h, char *out, unsigned size) {
    struct part *p = part_of(h);
    if (p && strcmp(p->profile, "-")) snprintf(out, size, "NVIDIA H200 MIG %s", p->profile);
    else snprintf(out, size, "NVIDIA H200");
    return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 13010; return SUCCESS; }
int nvmlDeviceGetVbiosVersion(void *h, char *out, unsigned size) { (void)h; snprintf(out, size, "96.00.B1.00.01"); return SUCCESS; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *out) {
    char value[80];
    if (!fact_of("watts", h, 0, value)) return NOT_SUPPORTED;
    if (!strcmp(value, "hang")) for (;;) pause();
    *out = (unsigned)atoi(value);
    return SUCCESS;
}
int nvmlDeviceGetRemappedRows(void *h, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    char value[80];
    if (!fact_of("remap", h, 0, value)) return NOT_SUPPORTED;
    *corrected = *uncorrected = *pending = 0;
    *failed = (unsigned)atoi(value);
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, struct process *out) {
    char value[80];
    unsigned have = 0;
    while (fact_of("process", h, (int)have, value)) {
        if (out && have < *n) { memset(&out[have], 0, sizeof *out); out[have].pid = (unsigned)atoi(value); }
        have++;
    }
    int enough = out && *n >= have;
    *n = have;
    return have == 0 || enough ? SUCCESS : INSUFFICIENT_SIZE;
}
int nvmlDeviceGetMemoryInfo_v2(void *h, struct memory *out) {
    char value[80];
    if (!fact_of("memory", h, 0, value)) return NOT_SUPPORTED;
    out->total = 143ull << 30;
    out->reserved = 600ull << 20;
    out->used = (unsigned long long)atoi(value) << 20;
    out->free = out->total - out->reserved - out->used;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(void *h, unsigned *current, unsigned *pending) {
    char value[80];
    if (!fact_of("mig", h, 0, value)) return NOT_SUPPORTED;
    *current = *pending = (unsigned)atoi(value);
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *out) { (void)h; *out = 7; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned place, void **out) {
    const char *name = getenv("NVML_STAND_IN_MORE");
    FILE *f = name ? fopen(name, "r") : NULL;
    char line[256];
    int n = 0, found = -1;
    while (f && n < 16 && fgets(line, sizeof line, f)) {
        struct part *p = &parts[n];
        if (sscanf(line, "part %d %79s %d %u %u %31s", &p->gpu, p->uuid, &p->place, &p->gi, &p->ci, p->profile) != 6) continue;
        if (p->gpu == (long)h - 1 && p->place == (int)place) found = n;
        n++;
    }
    if (f) fclose(f);
    if (found < 0) return NOT_FOUND;
    *out = (void *)(long)(PARTS + found);
    return SUCCESS;
}
int nvmlDeviceGetGpuInstanceId(void *h, unsigned *out) { *out = part_of(h)->gi; return SUCCESS; }
int nvmlDeviceGetComputeInstanceId(void *h, unsigned *out) { *out = part_of(h)->ci; return SUCCESS; }
int nvmlDeviceGetSerial(void *h, char *out, unsigned size) {
    if (!strcmp(of(h)->serial, "-")) return NOT_SUPPORTED;
    snprintf(out, size, "%s", of(h)->serial);
    return SUCCESS;
}
int nvmlDeviceGetMinorNumber(void *h, unsigned *out) { *out = of(h)->minor; return SUCCESS; }
int nvmlDeviceGetPciInfo_v3(void *h, struct pci *out) { memset(out, 0, sizeof *out); snprintf(out->busId, 32, "%s", of(h)->bus); return SUCCESS; }
int nvmlDeviceGetFieldValues(void *h, int n, struct field *values) {
    for (int i = 0; i < n; i++) {
        values[i].ret = values[i].id != 230 || of(h)->action < 0 ? NOT_SUPPORTED : SUCCESS;
        values[i].value.u = (unsigned)of(h)->action;
    }
    return SUCCESS;
}
int nvmlEventSetCreate(void **out) { static int set; *out = &set; return SUCCESS; }
int nvmlDeviceGetSupportedEventTypes(void *h, unsigned long long *out) { (void)h; *out = 8; return SUCCESS; }
int nvmlDeviceRegisterEvents(void *h, unsigned long long types, void *set) { (void)h; (void)set; return types == 8 ? SUCCESS : NOT_SUPPORTED; }
int nvmlEventSetWait_v2(void *set, struct event *out, unsigned ms) {
    int at = 0; long index; unsigned long long xid; unsigned gi;
    char line[256];
    (void)set; (void)ms;
    FILE *f = fopen(getenv("NVML_STAND_IN_XIDS"), "r");
    if (!f) return TIMEOUT;
    while (fgets(line, sizeof line, f)) {
        int fields = sscanf(line, "%ld %llu gi=%u", &index, &xid, &gi);
        if (fields < 2 || at++ != consumed) continue;
        consumed++;
        fclose(f);
        memset(out, 0, sizeof *out);
        out->device = (void *)(index + 1);
        out->type = 8;
        out->data = xid;
        out->gi = out->ci = fields == 3 ? gi : 0xFFFFFFFFu;
        return SUCCESS;
    }
    fclose(f);
    return TIMEOUT;
}
