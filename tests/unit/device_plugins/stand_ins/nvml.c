/*
 * Stand-in for NVIDIA's libnvidia-ml.so.1: the functions that the plugin calls, with the signatures and return codes that
 * NVML documents, over a text file that the test writes. The driver and the silicon are not there; NVML's interface is.
 *
 * File named by NVML_STAND_IN: first line "DRIVER init-code"; then one line a GPU:
 *   uuid serial minor busId recovery-action(-1: unknown to the driver) lost(0|1)
 * File named by NVML_STAND_IN_XIDS: a line "index xid" an event, consumed once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define DRIVER_NOT_LOADED 9
#define TIMEOUT 10
#define GPU_IS_LOST 15

struct gpu { char uuid[80], serial[32], bus[32]; unsigned minor; int action, lost; };
struct pci { char legacy[16]; unsigned domain, bus, device, pciDevice, subsystem; char busId[32]; };
struct field { unsigned id, scope; long long at, latency; int type, ret; union { double d; unsigned u; unsigned long long ull; } value; };
struct event { void *device; unsigned long long type, data; unsigned gi, ci; };

static struct gpu gpus[16];
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
int nvmlDeviceGetUUID(void *h, char *out, unsigned size) { snprintf(out, size, "%s", of(h)->uuid); return SUCCESS; }
int nvmlDeviceGetName(void *h, char *out, unsigned size) { (void)h; snprintf(out, size, "NVIDIA H200"); return SUCCESS; }
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
    int line = 0; long index; unsigned long long xid;
    (void)set; (void)ms;
    FILE *f = fopen(getenv("NVML_STAND_IN_XIDS"), "r");
    if (!f) return TIMEOUT;
    while (fscanf(f, "%ld %llu", &index, &xid) == 2)
        if (line++ == consumed) {
            consumed++;
            fclose(f);
            memset(out, 0, sizeof *out);
            out->device = (void *)(index + 1);
            out->type = 8;
            out->data = xid;
            return SUCCESS;
        }
    fclose(f);
    return TIMEOUT;
}
