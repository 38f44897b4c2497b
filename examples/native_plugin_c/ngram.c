/* A language model over bytes in one file of C: what rm_plugin.h asks of a vendor's library, done for real.
 *
 * rma_compile counts which byte follows which context in the lines of corpus.txt; rma_run continues a prompt with the
 * byte that followed the longest context it knows most often, or with one drawn by how often it did. The end of a line
 * is token 256, which ends a text.
 */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "json.h"
#include "rm_plugin.h"

#define ORDER 6
#define END 256
#define FORMAT "byte-ngram"
#define FILE_NAME "ngram.bin"
#define MAGIC "RMNGRAM2"
#define LONGEST 100000
#define MOST_RUNS 8

typedef struct {
    uint8_t length; /* of the context */
    uint8_t context[ORDER];
    uint8_t unused;
    uint32_t next;
    uint32_t count;
} row;

/* What a file begins with; the rows come after it. */
typedef struct {
    char magic[8];
    uint32_t longest; /* tokens of prompt and answer */
    uint32_t runs;    /* at a time */
} header;

struct rma_session {
    size_t count;
    row *rows; /* sorted: a context's rows lie together */
};

static _Thread_local char last_error[512];

static int32_t fail(int32_t code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return code;
}

static int32_t answer(char **out, const char *text)
{
    char *copy = malloc(strlen(text) + 1);
    if (!copy)
        return fail(RMA_TRANSIENT, "there is no memory");
    *out = strcpy(copy, text);
    return RMA_OK;
}

uint32_t rma_abi_version(void)
{
    return RMA_ABI_VERSION;
}

const char *rma_last_error(void)
{
    return last_error;
}

void rma_free(char *text)
{
    free(text);
}

int32_t rma_info(char **out)
{
    return answer(out, "{\"name\":\"byte-ngram\",\"version\":\"1.2.0\",\"display_name\":\"Byte n-grams (C)\","
                       "\"description\":\"Continues bytes with what followed them most often\","
                       "\"author\":\"RM Abstract\",\"vendor\":\"RM Abstract\",\"device_types\":[\"cpu\"],"
                       "\"formats\":[\"" FORMAT "\"],\"priority\":10,\"min_host_version\":\"0.1.0\","
                       "\"compiler\":{\"name\":\"byte-ngram\",\"version\":\"1.2.0\",\"format\":\"" FORMAT "\"}}");
}

int32_t rma_probe(const char *request, char **out)
{
    const char *devices = json_member(request, "devices");
    const char *first = devices && *devices == '[' ? json_blank(devices + 1) : "]";
    if (*first != ']' && strncmp(first, "\"cpu\"", 5))
        return fail(RMA_DEVICE_MISSING, "byte-ngram runs on the device cpu alone");
    return answer(out, "{\"devices\":[{\"id\":\"cpu\",\"type\":\"cpu\",\"attributes\":{}}]}");
}

static int by_context_and_next(const void *left, const void *right)
{
    const row *a = left, *b = right;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    int order = memcmp(a->context, b->context, ORDER);
    return order ? order : (a->next > b->next) - (a->next < b->next);
}

static char *join(const char *directory, const char *name)
{
    char *path = malloc(strlen(directory) + strlen(name) + 2);
    if (path)
        sprintf(path, "%s/%s", directory, name);
    return path;
}

/* The whole file, with its size; NULL, and errno, where it cannot be read. */
static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    char *content = NULL;
    long end = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
    if (end >= 0 && (content = malloc((size_t)end + 1)) != NULL) {
        rewind(file);
        *size = fread(content, 1, (size_t)end, file);
        content[*size] = 0;
    }
    fclose(file);
    return content;
}

static row *count_rows(const char *corpus, size_t size, size_t *count)
{
    row *rows = calloc((size + 1) * (ORDER + 1), sizeof *rows);
    size_t made = 0, kept = 0, start = 0;
    if (!rows)
        return NULL;
    for (size_t at = 0; at < size; at++) {
        int ends = corpus[at] == '\n';
        for (size_t length = 0; length <= ORDER && length <= at - start; length++) {
            row *one = &rows[made++];
            one->length = (uint8_t)length;
            memcpy(one->context, corpus + at - length, length);
            one->next = ends ? END : (uint8_t)corpus[at];
            one->count = 1;
        }
        if (ends)
            start = at + 1;
    }
    qsort(rows, made, sizeof *rows, by_context_and_next);
    for (size_t at = 0; at < made; at++) {
        if (kept && !by_context_and_next(&rows[kept - 1], &rows[at]))
            rows[kept - 1].count++;
        else
            rows[kept++] = rows[at];
    }
    *count = kept;
    return rows;
}

/* A limit of a request; `most` where it names none, or a larger one. */
static uint32_t limit(const char *request, const char *name, uint32_t most)
{
    double wanted = json_number(request, name, 0);
    return wanted >= 1 && wanted < most ? (uint32_t)wanted : most;
}

int32_t rma_compile(const char *request, char **out)
{
    header head = {.longest = limit(request, "max_sequence_length", LONGEST),
                   .runs = limit(request, "max_batch_size", MOST_RUNS)};
    memcpy(head.magic, MAGIC, sizeof head.magic);
    char *model = json_text(request, "model"), *output = json_text(request, "output");
    char *from = model ? join(model, "corpus.txt") : NULL, *to = output ? join(output, FILE_NAME) : NULL;
    size_t size = 0, count = 0;
    char *corpus = from ? read_file(from, &size) : NULL;
    row *rows = corpus && size ? count_rows(corpus, size, &count) : NULL;
    int32_t code = RMA_OK;
    if (!corpus)
        code = fail(RMA_BAD_INPUT, "%s cannot be read: %s", from ? from : "corpus.txt", strerror(errno));
    else if (!size)
        code = fail(RMA_BAD_INPUT, "%s is empty; a line of text is the least that there can be", from);
    else if (!rows)
        code = fail(RMA_TRANSIENT, "there is no memory for %zu bytes of text", size);
    else {
        FILE *file = to ? fopen(to, "wb") : NULL;
        int written = file && fwrite(&head, sizeof head, 1, file) == 1 && fwrite(rows, sizeof *rows, count, file) == count;
        if (file && fclose(file))
            written = 0;
        if (!written)
            code = fail(RMA_TRANSIENT, "%s cannot be written: %s", to ? to : FILE_NAME, strerror(errno));
    }
    free(model), free(output), free(from), free(to), free(corpus), free(rows);
    return code ? code : answer(out, "{\"format\":\"" FORMAT "\",\"versions\":{\"byte-ngram\":\"1.2.0\"}}");
}

int32_t rma_open(const char *request, rma_session **session, char **out)
{
    char *directory = json_text(request, "artifact"), *path = directory ? join(directory, FILE_NAME) : NULL;
    size_t size = 0;
    char *content = path ? read_file(path, &size) : NULL;
    int valid = content && size > sizeof(header) && !memcmp(content, MAGIC, 8) &&
                (size - sizeof(header)) % sizeof(row) == 0;
    int32_t code = RMA_OK;
    rma_session *opened = NULL;
    if (!content)
        code = fail(RMA_ARTIFACT_MISMATCH, "the artifact has no " FILE_NAME " that can be read: %s", strerror(errno));
    else if (!valid)
        code = fail(RMA_ARTIFACT_MISMATCH, "%s was not made by byte-ngram 1", path);
    else if (!(opened = calloc(1, sizeof *opened)) || !(opened->rows = malloc(size - sizeof(header))))
        code = fail(RMA_TRANSIENT, "there is no memory for %zu bytes of model", size);
    else {
        header head;
        char facts[160];
        memcpy(&head, content, sizeof head);
        opened->count = (size - sizeof head) / sizeof(row);
        memcpy(opened->rows, content + sizeof head, size - sizeof head);
        snprintf(facts, sizeof facts,
                 "{\"max_sequence_length\":%u,\"vocabulary_size\":257,\"max_concurrent_runs\":%u,"
                 "\"temperature\":0.0,\"tokenizer\":\"bytes\"}",
                 head.longest, head.runs);
        code = answer(out, facts);
    }
    free(directory), free(path), free(content);
    if (code) {
        if (opened)
            free(opened->rows);
        free(opened);
        return code;
    }
    *session = opened;
    return RMA_OK;
}

/* The rows of a context: how many there are, and the first of them. */
static size_t rows_of(const rma_session *model, const uint8_t *context, uint8_t length, const row **first)
{
    row wanted = {.length = length};
    size_t low = 0, high = model->count, count = 0;
    memcpy(wanted.context, context, length);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (by_context_and_next(&model->rows[middle], &wanted) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *first = model->rows + low;
    while (low + count < model->count && model->rows[low + count].length == length &&
           !memcmp(model->rows[low + count].context, wanted.context, ORDER))
        count++;
    return count;
}

static double draw(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (double)(*state >> 11) / 9007199254740992.0;
}

static uint32_t choose(const row *rows, size_t count, double temperature, uint64_t *state)
{
    size_t best = 0;
    double sum = 0;
    for (size_t at = 0; at < count; at++) {
        if (rows[at].count > rows[best].count)
            best = at;
        sum += temperature > 0 ? pow(rows[at].count, 1 / temperature) : 0;
    }
    if (temperature > 0 && isfinite(sum)) {
        double left = draw(state) * sum;
        for (size_t at = 0; at < count; at++) {
            left -= pow(rows[at].count, 1 / temperature);
            if (left < 0)
                return rows[at].next;
        }
    }
    return rows[best].next;
}

int32_t rma_run(rma_session *session, uint64_t run, const char *request, rma_on_tokens on_tokens, void *user, char **out)
{
    const char *at = json_member(request, "prompt");
    char *task = json_text(request, "task");
    int known = task && !strcmp(task, "generate");
    free(task);
    if (!known)
        return fail(RMA_BAD_INPUT, "the one task of byte-ngram is generate");
    long most = (long)json_number(request, "max_tokens", 16);
    double temperature = json_number(request, "temperature", 0);
    uint64_t state = (uint64_t)json_number(request, "seed", (double)run) * 2654435769u + 88172645463325252u;
    int ignore_end = json_true(request, "ignore_eos");
    uint8_t context[ORDER] = {0};
    size_t length = 0;
    uint32_t token = END;
    int wanted = 1;
    if (!at || *at != '[' || most < 1)
        return fail(RMA_BAD_INPUT, "generate needs a prompt, which is a list of tokens, and max_tokens of 1 or more");
    for (at = json_blank(at + 1);; at = json_blank(at)) {
        if (*at != ']' && *at) {
            char *end;
            token = (uint32_t)strtoul(at, &end, 10);
            at = json_blank(end);
            at += *at == ',';
        } else {
            break;
        }
        if (length == ORDER)
            memmove(context, context + 1, --length);
        context[length++] = (uint8_t)token;
        if (token >= END)
            length = 0;
    }
    for (long made = 0; made < most && wanted; made++) {
        const row *rows = session->rows;
        size_t count = 0;
        for (size_t known_length = length + 1; !count && known_length-- > 0;)
            count = rows_of(session, context + length - known_length, (uint8_t)known_length, &rows);
        token = choose(rows, count, temperature, &state);
        wanted = !on_tokens(user, &token, 1);
        if (token == END && !ignore_end)
            return answer(out, "{\"finish\":\"stop\"}");
        if (length == ORDER)
            memmove(context, context + 1, --length);
        context[length++] = (uint8_t)token;
        if (token == END)
            length = 0;
    }
    return answer(out, wanted ? "{\"finish\":\"length\"}" : "{\"finish\":\"cancelled\"}");
}

int32_t rma_cancel(rma_session *session, uint64_t run)
{
    /* The callback says it soon enough: a token takes microseconds. */
    (void)session, (void)run;
    return RMA_OK;
}

int32_t rma_close(rma_session *session)
{
    free(session->rows);
    free(session);
    return RMA_OK;
}
