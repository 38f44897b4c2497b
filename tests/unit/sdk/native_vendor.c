/* A library as vendors ship it: its own names, its own conventions, and nothing of rm_plugin.h.
 *
 * The "model" is a text file; a prompt is looked up in it, and what follows it there is the answer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    char *text;
    size_t length;
    const char *next;
    int device;
    volatile int stopped;
} vx_model;

static char message[256] = "nothing has failed";

const char *vx_version(void)
{
    return "4.2.0";
}

const char *vx_explain(int32_t status)
{
    static char text[320];
    snprintf(text, sizeof text, "VX-%d %s", (int)status, message);
    return text;
}

int32_t vx_devices(void)
{
    return 2;
}

int32_t vx_load(const char *path, int32_t device, uint64_t threads, void **out)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        snprintf(message, sizeof message, "cannot open %s", path);
        return -7;
    }
    vx_model *model = calloc(1, sizeof *model);
    model->text = malloc(1 << 16);
    model->length = fread(model->text, 1, 1 << 16, file);
    model->device = device + 10 * (int)threads;
    fclose(file);
    *out = model;
    return 0;
}

void *vx_load2(const char *path)
{
    void *model = NULL;
    return vx_load(path, 0, 0, &model) ? NULL : model;
}

int32_t vx_unload(void *model)
{
    free(((vx_model *)model)->text);
    free(model);
    return 0;
}

/* What follows the prompt in the text, or NULL. */
static const char *follow(vx_model *model, const uint8_t *prompt, size_t length)
{
    const char *found = length ? memmem(model->text, model->length, prompt, length) : NULL;
    if (!found)
        snprintf(message, sizeof message, "the prompt is not in the text");
    return found ? found + length : NULL;
}

/* Fills a buffer; `*count` is its room, and then what was stored. */
int32_t vx_generate(void *handle, const uint8_t *prompt, size_t length, uint8_t *out, uint32_t *count)
{
    vx_model *model = handle;
    const char *from = follow(model, prompt, length);
    if (!from)
        return 3;
    size_t left = (size_t)(model->text + model->length - from);
    *count = (uint32_t)(left < *count ? left : *count);
    memcpy(out, from, *count);
    return 0;
}

/* The same, by returning what was stored. */
int64_t vx_generate2(void *handle, const uint8_t *prompt, int32_t length, uint8_t *out, int32_t most)
{
    uint32_t count = (uint32_t)most;
    return vx_generate(handle, prompt, (size_t)length, out, &count) ? -1 : (int64_t)count;
}

/* The same, through a callback for each byte. */
int32_t vx_stream(void *handle, const uint8_t *prompt, size_t length, int (*each)(void *, uint8_t), void *user)
{
    vx_model *model = handle;
    const char *from = follow(model, prompt, length);
    if (!from)
        return 3;
    while (from < model->text + model->length && !each(user, (uint8_t)*from))
        from++;
    return 0;
}

/* The same, one byte for each call. */
int32_t vx_begin(void *handle, const uint8_t *prompt, size_t length)
{
    vx_model *model = handle;
    model->next = follow(model, prompt, length);
    return model->next ? 0 : 3;
}

int32_t vx_step(void *handle)
{
    vx_model *model = handle;
    return model->next < model->text + model->length ? (uint8_t)*model->next++ : -1;
}

/* Works until it is stopped. */
int32_t vx_endless(void *handle, int (*each)(void *, const uint8_t *, size_t), void *user)
{
    vx_model *model = handle;
    each(user, (const uint8_t *)"ab", 2);
    while (!model->stopped)
        usleep(1000);
    model->stopped = 0;
    return 0;
}

int32_t vx_stop(void *handle)
{
    ((vx_model *)handle)->stopped = 1;
    return 0;
}

/* Numbers: each one scaled. */
int32_t vx_scale(void *handle, const float *in, size_t length, double factor, double *out, size_t *count)
{
    vx_model *model = handle;
    for (*count = 0; *count < length; ++*count)
        out[*count] = in[*count] * factor + model->device;
    return 0;
}

int32_t vx_lie(void *handle, uint8_t *out, size_t *count)
{
    (void)handle, (void)out;
    *count += 1000;
    return 0;
}

int32_t vx_crash(void *handle, uint8_t *out, size_t *count)
{
    (void)handle, (void)out, (void)count;
    abort();
}

int32_t vx_build(const char *from, const char *to, const char *level)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/text", from);
    FILE *in = fopen(path, "rb"), *out = fopen(to, "wb");
    if (!in || !out) {
        snprintf(message, sizeof message, "no text at %s", from);
        return 9;
    }
    fprintf(out, "[%s]", level);
    for (int byte; (byte = fgetc(in)) != EOF;)
        fputc(byte, out);
    fclose(in);
    return fclose(out);
}
