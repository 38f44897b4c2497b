/* rm_plugin.h: what a shared library exports to compile or serve models under RM Abstract.
 *
 * Ten functions. JSON goes in and comes out as UTF-8 text that ends with a zero byte; tokens come out through a
 * callback. A library is loaded into a process of its own. If it crashes, hangs or calls exit(), that process ends, the
 * calls that were going on fail with what happened, and the host may load the library again in a new process. What it
 * prints, on stdout or stderr, goes to the host's log.
 *
 * Ownership
 *   - What the host passes in belongs to the host and is valid until the function returns. Copy what is needed longer.
 *   - What a function stores in `*out` is allocated by the library, by whatever means; the host copies it and hands it
 *     to rma_free exactly once. A function that fails leaves `*out` alone.
 *   - The text of rma_last_error belongs to the library.
 *   - A session belongs to the host from a successful rma_open until rma_close, which is called once.
 *
 * Threads
 *   - rma_info, rma_probe, rma_compile, rma_open and rma_close are called one at a time, on any thread.
 *   - rma_run is called on any thread, together with any other function: the task generate for one session at most as
 *     many times at once as rma_open's answer allows with `max_concurrent_runs` (1 where it does not say), the tasks
 *     encode, decode and chat at any time beside it.
 *   - rma_cancel is called on any thread while rma_run is under way. It must not wait for the run.
 *   - rma_close is called when no run of its session is under way.
 *   - rma_last_error is called on the thread on which a function has just failed, before any other call there.
 *   - The callback may be called on any thread, but not after rma_run has returned, nor twice at once for one run.
 *
 * Errors
 *   Functions return RMA_OK or one of the codes below, which are the exit codes of RM Abstract's containers: they
 *   decide whether something is tried again, and where. After a failure rma_last_error says why, in words for a person.
 *
 * Versions
 *   rma_abi_version returns RMA_ABI_VERSION of the header that the library was built with: the major version in the
 *   upper 16 bits, the minor version in the lower 16. A host loads a library of its own major version, whatever its
 *   minor. A new minor version may add members to the JSON, which older sides ignore, and functions that the other side
 *   does not rely on. Anything else is a new major version. The functions' own names never change.
 */
#ifndef RM_PLUGIN_H
#define RM_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RMA_ABI_MAJOR 1u
#define RMA_ABI_MINOR 0u
#define RMA_ABI_VERSION ((RMA_ABI_MAJOR << 16) | RMA_ABI_MINOR)

#if defined(_WIN32)
#define RMA_EXPORT __declspec(dllexport)
#else
#define RMA_EXPORT __attribute__((visibility("default")))
#endif

enum {
    RMA_OK = 0,
    RMA_BAD_INPUT = 64,          /* the model or the request is wrong; trying again does not help */
    RMA_ARTIFACT_MISMATCH = 65,  /* the artifact is not what it should be, or does not fit the device */
    RMA_DEVICE_MISSING = 66,     /* a device is not there, or is another one; not tried again on this node */
    RMA_DRIVER_MISMATCH = 67,    /* the driver is not one that the artifact was built for; nor this */
    RMA_SOURCE_UNREACHABLE = 69, /* something on the network does not answer; it may later */
    RMA_TOOLCHAIN_FAILURE = 70,  /* the compiler or the engine failed, and would again */
    RMA_TRANSIENT = 75           /* something that may pass by itself */
};

/* A model that is loaded. The library defines what it is. */
typedef struct rma_session rma_session;

/* Receives the next tokens of a run, in order. `user` is what rma_run was given. A result that is not 0 says that
 * nobody wants more: the run ends soon, with "finish":"cancelled". */
typedef int32_t (*rma_on_tokens)(void *user, const uint32_t *tokens, size_t count);

/* The version of this interface: `return RMA_ABI_VERSION;`. Nothing else is called before it. */
RMA_EXPORT uint32_t rma_abi_version(void);

/* What the library is, without touching a device; the same at each call.
 * Out: {"name":"acme-npu","version":"1.4.0",          required; the version as semver.org has it
 *       "description":"","author":"","vendor":"","display_name":"",
 *       "device_types":["npu"],                      types of devices in lower case
 *       "formats":["acme-bin"],                      formats of artifacts that rma_open takes
 *       "priority":50,                               among plugins for the same device: 0, 25, 50, 75, 100; the highest
 *                                                    is preferred
 *       "min_host_version":"0.1.0","max_host_version":"0.9.0",     of RM Abstract
 *       "compiler":{"name":"accc","version":"2.0","format":"acme-bin"}}     only if rma_compile compiles
 * Members that are not required may be left out here and below; unknown ones are ignored. */
RMA_EXPORT int32_t rma_info(char **out);

/* The devices that it can use.
 * In:  {"devices":["npu0"]}         ids that were announced; empty: whatever is there
 * Out: {"devices":[{"id":"npu0","type":"npu","attributes":{"product":"X1","driver":"1.4","memory_bytes":1024}}]}
 * RMA_DEVICE_MISSING where one that was announced is not there. */
RMA_EXPORT int32_t rma_probe(const char *request, char **out);

/* Compile a model. No device is needed.
 * In:  {"model":"/model","output":"/output","key":"…","target":"","dtype":"","max_batch_size":null,
 *       "max_sequence_length":null,"options":{"name":"value"}}
 *      `model` is a directory in the layout of Hugging Face, `output` an empty directory for the result.
 * Out: {"format":"acme-bin","products":["X1"],"drivers":["1.4"],"versions":{"accc":"2.0"}} */
RMA_EXPORT int32_t rma_compile(const char *request, char **out);

/* Load an artifact on devices.
 * In:  {"artifact":"/artifact","devices":["npu0"],"dtype":"","max_batch_size":null,"max_sequence_length":null,
 *       "options":{"name":"value"}}
 * Out: {"max_sequence_length":4096,        prompt and answer together, in tokens
 *       "vocabulary_size":32000,
 *       "max_concurrent_runs":1,
 *       "temperature":1.0,"top_p":1.0,     where a request names none
 *       "tokenizer":"bytes"}               "bytes": tokens 0 to 255 are the bytes of UTF-8, those above are no text;
 *                                          "library": rma_run answers the tasks encode, decode and chat
 * A library that serves something else than text generation answers what its users understand. */
RMA_EXPORT int32_t rma_open(const char *request, rma_session **session, char **out);

/* Do one task, and return when it has ended. `run` is a number that is never used twice in a process; it is for
 * rma_cancel.
 * In:  {"task":"generate","prompt":[1,2],"max_tokens":16,"temperature":0.0,"top_p":1.0,"top_k":null,"seed":null,
 *       "presence_penalty":0.0,"frequency_penalty":0.0,"ignore_eos":false}
 *      Temperature 0 is greedy. A token that ends the text is passed to the callback like any other.
 * Out: {"finish":"stop"}     or "length" where max_tokens were made, or "cancelled"
 * In:  {"task":"encode","text":"…","add_special_tokens":true}           Out: {"tokens":[1,2]}
 * In:  {"task":"decode","tokens":[1,2]}                                Out: {"text":"…"}   without special tokens
 * In:  {"task":"chat","messages":[{"role":"user","content":"…"}]}        Out: {"text":"…"}   the prompt
 * Other tasks are between the library and its users. */
RMA_EXPORT int32_t rma_run(rma_session *session, uint64_t run, const char *request, rma_on_tokens on_tokens, void *user,
                           char **out);

/* End a run soon; it still returns by itself. The run may have ended, or may not have begun to look: neither is an
 * error. From then on its callback returns 1, so that a library that makes tokens often has nothing to do here. */
RMA_EXPORT int32_t rma_cancel(rma_session *session, uint64_t run);

/* Unload the model. The session is gone, whatever is returned. */
RMA_EXPORT int32_t rma_close(rma_session *session);

/* Why the last function that failed on this thread did; empty or NULL where there is nothing to say. Valid until the
 * next call on the same thread. */
RMA_EXPORT const char *rma_last_error(void);

/* Free what a function stored in `*out`. NULL is allowed. */
RMA_EXPORT void rma_free(char *text);

#ifdef __cplusplus
}
#endif

#endif
