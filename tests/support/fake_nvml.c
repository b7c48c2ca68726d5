/* libnvidia-ml.so.1 of a machine that does not exist: what the file $FAKE_NVML says, read anew at
 * every call. A line a thing, in the order of the devices:
 *
 *   gpu   UUID TOTAL USED ERROR ECC NAME…       a GPU; calls about it return ERROR
 *   part  UUID TOTAL USED ERROR ECC NAME…       a part of the GPU above, which is divided (MIG)
 *   xid   PLACE NUMBER                          an error of the GPU at that place, told once
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, MOST = 64 };

typedef struct {
    char kind[8], uuid[64], name[96];
    unsigned long long total, used, ecc;
    int error, parent, number;
} thing_t;

typedef struct {
    void *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} event_t;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_t;

static thing_t things[MOST];
static int num_things, num_gpus, told_events;

static int look(void) {
    FILE *file = fopen(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", "r");
    char line[256];
    num_things = num_gpus = 0;
    if (!file) return DRIVER_NOT_LOADED;
    while (num_things < MOST && fgets(line, sizeof line, file)) {
        thing_t *it = &things[num_things];
        memset(it, 0, sizeof *it);
        if (sscanf(line, "xid %d %d", &it->parent, &it->number) == 2) {
            strcpy(it->kind, "xid");
        } else if (sscanf(line, "%7s %63s %llu %llu %d %llu %95[^\n]", it->kind, it->uuid, &it->total,
                          &it->used, &it->error, &it->ecc, it->name) == 7) {
            if (!strcmp(it->kind, "gpu")) num_gpus++;
            it->parent = num_gpus - 1;
        } else {
            continue;
        }
        num_things++;
    }
    fclose(file);
    return OK;
}

/* A handle is the number of the thing's line, from one. */
static void *handle_of(int index) { return (void *)(unsigned long)(index + 1); }

static int nth(const char *kind, int parent, unsigned place) {
    for (int index = 0; index < num_things; index++) {
        thing_t *it = &things[index];
        if (!strcmp(it->kind, kind) && (parent < 0 || it->parent == parent) && place-- == 0) return index;
    }
    return -1;
}

static thing_t *find(void *handle, int *error) {
    *error = look();
    int index = (int)(unsigned long)handle - 1;
    if (!*error && (index < 0 || index >= num_things)) *error = NOT_FOUND;
    if (*error) return &things[0];
    *error = things[index].error;
    return &things[index];
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return look(); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int error) { return error == 15 ? "GPU is lost" : "an error of the driver"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "570.86.10");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int error = look();
    *count = num_gpus;
    return error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned place, void **device) {
    int error = look(), index = nth("gpu", -1, place);
    if (error || index < 0) return error ? error : NOT_FOUND;
    *device = handle_of(index);
    return things[index].error;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    int error;
    snprintf(name, length, "%s", find(device, &error)->name);
    return error;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    int error;
    snprintf(uuid, length, "%s", find(device, &error)->uuid);
    return error;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_t *memory) {
    int error;
    thing_t *it = find(device, &error);
    memory->total = it->total;
    memory->used = it->used;
    return error;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    int error;
    thing_t *it = find(device, &error);
    *current = *pending = nth("part", it->parent, 0) >= 0;
    return error ? error : strstr(it->name, "A100") || strstr(it->name, "H100") ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) {
    int error;
    find(device, &error);
    *count = 7;
    return error;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned place, void **part) {
    int error;
    thing_t *it = find(device, &error);
    int index = nth("part", it->parent, place);
    *part = handle_of(index);
    return error ? error : index < 0 ? NOT_FOUND : OK;
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *count) {
    int error;
    (void)type, (void)counter;
    *count = find(device, &error)->ecc;
    return error;
}

int nvmlDeviceGetRemappedRows(void *device, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
    int error;
    *corrected = *uncorrected = *pending = 0;
    *failed = find(device, &error)->ecc > 1000;
    return error;
}

int nvmlEventSetCreate(void **set) { *set = &told_events; return OK; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
    (void)device, (void)types, (void)set;
    return OK;
}

int nvmlEventSetWait_v2(void *set, event_t *event, unsigned milliseconds) {
    (void)set, (void)milliseconds;
    if (look()) return DRIVER_NOT_LOADED;
    int index = nth("xid", -1, told_events);
    if (index < 0) return TIMEOUT;
    told_events++;
    *event = (event_t){handle_of(nth("gpu", -1, things[index].parent)), 8, things[index].number, 0, 0};
    return OK;
}
