/* A library that does everything that rm_plugin.h forbids: at run time, by the task that it is given; from the
 * beginning, by the macros that it is compiled with. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rm_plugin.h"

#ifndef ABI
#define ABI RMA_ABI_VERSION
#endif
#ifndef INFO
#define INFO "{\"name\":\"broken\",\"version\":\"1.0.0\"}"
#endif
#ifndef PROBE
#define PROBE "{\"devices\":[]}"
#endif
#ifndef FACTS
#define FACTS "{}"
#endif

struct rma_session {
    int unused;
};

static struct rma_session the_session;
static _Thread_local const char *error = "";

static int32_t give(char **out, const char *text)
{
    *out = strdup(text);
    return RMA_OK;
}

uint32_t rma_abi_version(void)
{
    return ABI;
}

const char *rma_last_error(void)
{
    return error;
}

void rma_free(char *text)
{
    free(text);
}

#ifdef CRASH_ON_LOAD
__attribute__((constructor)) static void crash(void)
{
    abort();
}
#endif

int32_t rma_info(char **out)
{
#ifdef HANG_IN_INFO
    for (;;)
        pause();
#endif
#ifdef BECOMES_ANOTHER
    char text[80];
    snprintf(text, sizeof text, "{\"name\":\"broken\",\"version\":\"1.0.%d\"}", (int)getpid());
    return give(out, text);
#endif
    return give(out, INFO);
}

int32_t rma_probe(const char *request, char **out)
{
    (void)request;
    return give(out, PROBE);
}

#ifndef WITHOUT_COMPILE
int32_t rma_compile(const char *request, char **out)
{
    (void)request, (void)out;
    error = "there is no compiler here";
    return RMA_TOOLCHAIN_FAILURE;
}
#endif

int32_t rma_open(const char *request, rma_session **session, char **out)
{
    (void)request;
    *session = &the_session;
    return give(out, FACTS);
}

/* A pipe keeps its number in the child, and a host with many files open gives it a high one. */
enum { MOST_DESCRIPTORS = 4096 };

static rma_on_tokens stale;
static void *stale_user;

static void *call_for_ever(void *unused)
{
    (void)unused;
    uint32_t token = 7;
    for (;;) {
        stale(stale_user, &token, 1);
        usleep(1000);
    }
    return NULL;
}

static void *wait_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return NULL;
}

static int is(const char *request, const char *task)
{
    char wanted[80];
    snprintf(wanted, sizeof wanted, "\"task\": \"%s\"", task);
    return strstr(request, wanted) != NULL;
}

int32_t rma_run(rma_session *session, uint64_t run, const char *request, rma_on_tokens on_tokens, void *user, char **out)
{
    uint32_t tokens[3] = {1, 2, 3};
    pthread_t thread;
    (void)session, (void)run;
    if (is(request, "segfault")) {
        fprintf(stderr, "about to read what is not there\n");
        return *(volatile int32_t *)run;
    }
    if (is(request, "abort") || strstr(request, "\"seed\": 666"))
        abort();
    if (is(request, "exit"))
        exit(3);
    if (is(request, "silent exit"))
        _exit(0);
    if (is(request, "hang")) {
        on_tokens(user, tokens, 3);
        for (;;)
            ;
    }
    if (is(request, "kill"))
        kill(getpid(), SIGKILL);
    if (is(request, "garbage"))
        return give(out, "{\"finish\": sto\xff");
    if (is(request, "deep")) {
        char *deep = malloc(400001);
        memset(deep, '[', 400000);
        deep[400000] = 0;
        *out = deep;
        return RMA_OK;
    }
    if (is(request, "list"))
        return give(out, "[1]");
    if (is(request, "nothing"))
        return RMA_OK;
    if (is(request, "odd code")) {
        error = "I feel odd";
        return 3;
    }
    if (is(request, "refuse")) {
        error = "the driver is \xff old";
        return RMA_DRIVER_MISMATCH;
    }
    if (is(request, "many tokens"))
        on_tokens(user, tokens, (size_t)1 << 40);
    if (is(request, "no tokens"))
        on_tokens(user, NULL, 3);
    if (is(request, "print")) {
        for (int line = 0; line < 20000; line++)
            printf("line %d of what nobody asked for\n", line);
        fflush(stdout);
    }
    if (is(request, "close descriptors"))
        for (int number = 0; number < MOST_DESCRIPTORS; number++)
            close(number);
    if (is(request, "speak for the host"))
        for (int number = 3; number < MOST_DESCRIPTORS; number++)
            if (write(number, "{\"tokens\":[1,2,3]}", 18) < 0)
                continue;
    if (is(request, "leak threads")) {
        stale = on_tokens, stale_user = user;
        pthread_create(&thread, NULL, call_for_ever, NULL);
        for (int number = 0; number < 20; number++)
            pthread_create(&thread, NULL, wait_for_ever, NULL);
    }
    if (is(request, "leave a process") && !fork())
        wait_for_ever(NULL);
    if (is(request, "until cancelled"))
        while (!on_tokens(user, tokens, 1))
            usleep(1000);
    if (is(request, "who"))
        return snprintf(*out = malloc(40), 40, "{\"process\": %d}", (int)getpid()) < 0;
    on_tokens(user, tokens, 3);
    return give(out, "{\"finish\":\"stop\"}");
}

int32_t rma_cancel(rma_session *session, uint64_t run)
{
    (void)session, (void)run;
    return RMA_OK;
}

int32_t rma_close(rma_session *session)
{
    (void)session;
    return RMA_OK;
}
