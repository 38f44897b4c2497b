/* As much of JSON as a plugin needs: members of an object that is known to be valid, as the host writes it. */
#ifndef EXAMPLE_JSON_H
#define EXAMPLE_JSON_H

#include <stdlib.h>
#include <string.h>

static const char *json_blank(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

static const char *json_skip_string(const char *at)
{
    for (at++; *at && *at != '"'; at++)
        if (*at == '\\' && at[1])
            at++;
    return *at ? at + 1 : at;
}

/* The first character after the value at `at`. */
static const char *json_skip(const char *at)
{
    int depth = 0;
    do {
        at = json_blank(at);
        if (*at == '"') {
            at = json_skip_string(at);
        } else if (*at == '{' || *at == '[') {
            depth++;
            at++;
        } else if (*at == '}' || *at == ']') {
            depth--;
            at++;
        } else if (*at == ',' || *at == ':') {
            at++;
        } else {
            at += strcspn(at, ",:]} \t\r\n");
        }
    } while (depth > 0 && *at);
    return at;
}

/* The value of a member of the object, or NULL. */
static const char *json_member(const char *object, const char *name)
{
    size_t length = strlen(name);
    const char *at = json_blank(object);
    if (*at != '{')
        return NULL;
    for (at = json_blank(at + 1); *at == '"'; at = json_blank(at + (*at == ','))) {
        const char *end = json_skip_string(at);
        int found = (size_t)(end - at) == length + 2 && !memcmp(at + 1, name, length);
        at = json_blank(end);
        at = json_blank(at + (*at == ':'));
        if (found)
            return strncmp(at, "null", 4) ? at : NULL;
        at = json_blank(json_skip(at));
    }
    return NULL;
}

static double json_number(const char *object, const char *name, double otherwise)
{
    const char *at = json_member(object, name);
    return at ? strtod(at, NULL) : otherwise;
}

static int json_true(const char *object, const char *name)
{
    const char *at = json_member(object, name);
    return at && !strncmp(at, "true", 4);
}

static unsigned json_hex(const char *at)
{
    char digits[5] = {0};
    memcpy(digits, at, 4);
    return (unsigned)strtoul(digits, NULL, 16);
}

/* A member that is a text, in memory that the caller frees, or NULL. Escaped surrogates are not put together: the host
 * writes UTF-8 as it is, and escapes control characters only. */
static char *json_text(const char *object, const char *name)
{
    const char *at = json_member(object, name);
    if (!at || *at != '"')
        return NULL;
    const char *end = json_skip_string(at);
    char *text = malloc((size_t)(end - at) + 1), *to = text;
    if (!text)
        return NULL;
    for (at++; at < end - 1; at++) {
        if (*at != '\\') {
            *to++ = *at;
            continue;
        }
        switch (*++at) {
        case 'n': *to++ = '\n'; break;
        case 't': *to++ = '\t'; break;
        case 'r': *to++ = '\r'; break;
        case 'b': *to++ = '\b'; break;
        case 'f': *to++ = '\f'; break;
        case 'u':
            *to++ = (char)json_hex(at + 1);
            at += 4;
            break;
        default: *to++ = *at;
        }
    }
    *to = 0;
    return text;
}

#endif
