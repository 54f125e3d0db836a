/* The functions of libxquant, in C: caches of every scheme that has a name, for programs in any language.
 *
 *     xq_layer layers[30];                               // xq_layer_init, then what the model is
 *     xq_cache* cache;
 *     if (xq_cache_create("kv4", layers, 30, NULL, NULL, &cache) != XQ_OK) die(xq_message());
 *     xq_sequence s;
 *     xq_sequence_create(cache, &s);
 *     xq_part part = {s, n, NULL, NULL};
 *     xq_step* step;
 *     xq_step_begin(cache, &part, 1, &step);
 *     xq_step_append_kv(step, 0, xq_floats(k, n, kv_width), xq_floats(v, n, kv_width), NULL);
 *     xq_step_attend(step, 0, xq_floats(q, n, heads * head_dim), out, 0, XQ_CAUSAL, NULL);   // and so on, layer by layer
 *     xq_step_commit(step);
 *     xq_step_free(step);
 *
 * What each verb does, costs and refuses is said in cache.hpp, model.hpp and cache_types.hpp, whose names these are.
 *
 * Errors   Every function that can fail returns a status and changes nothing then, unless its comment says otherwise;
 *          xq_message() is the sentence that belongs to the last failure of the calling thread. No exception leaves the
 *          library. A null pointer where none is allowed is XQ_SHAPE_ERROR.
 * Threads  As in C++: a cache may be used by several threads, a sequence by one at a time.
 * Memory   Handles are freed by their own function, which takes NULL as well. Steps are freed before their cache.
 * Binary   Structs that may grow begin with their size, which the init functions fill in; fields are added at the end,
 *          and a library reads no more than a program gave it.
 * Processor   The best code for the processor is loaded at the first call (xq_level); the environment variable
 *          XQUANT_ISA forces another. */
#ifndef XQUANT_XQUANT_H
#define XQUANT_XQUANT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define XQ_API __attribute__((visibility("default")))
#else
#define XQ_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** What became of a call. */
typedef enum xq_status {
    XQ_OK = 0,
    XQ_SHAPE_ERROR = 1,    /**< a size, option or name that does not fit the model or the scheme */
    XQ_VALUE_ERROR = 2,    /**< a value that cannot be stored: not finite, or too large */
    XQ_SEQUENCE_ERROR = 3, /**< a sequence that does not exist, or that another step is using */
    XQ_STATE_ERROR = 4,    /**< a call out of order */
    XQ_BUDGET_ERROR = 5,   /**< a budget of xq_options does not allow it */
    XQ_MEMORY_ERROR = 6,   /**< no memory */
    XQ_FILE_ERROR = 7,     /**< a file that cannot be written or read */
    XQ_DAMAGE_ERROR = 8,   /**< a file whose bytes are not those that were written */
    XQ_MISMATCH_ERROR = 9, /**< a file of another scheme, shape or model */
    XQ_LEVEL_ERROR = 10,   /**< no code for this processor, or files of the library that do not fit each other */
    XQ_OTHER_ERROR = 11    /**< what a callback reported, or an error that the library does not know */
} xq_status;

/** The sentence of the calling thread's last failure; "" before the first. Valid until its next one. */
XQ_API const char* xq_message(void);
/** The version of the library, "0.1.0". */
XQ_API const char* xq_version(void);
/** The name of the processor level whose code runs ("x86-64-v4") and its backend ("avx512_int8"); either may be NULL. */
XQ_API xq_status xq_level(const char** name, const char** backend);

/** What the library was compiled with. */
typedef enum xq_feature {
    XQ_FEATURE_SVD = 0,  /**< schemes that need Eigen: head4, svd_head4 and their kind */
    XQ_FEATURE_FILES = 1 /**< saving and loading, which need xxHash */
} xq_feature;
/** 1 if the library has it, 0 if not. */
XQ_API int xq_has(xq_feature feature);

/** Types of elements. */
typedef enum xq_type { XQ_F32 = 0, XQ_F16 = 1, XQ_BF16 = 2 } xq_type;

/** A matrix of the caller: row i begins at element i * stride. All zeros: no matrix. */
typedef struct xq_matrix {
    const void* data;
    size_t rows, cols, stride;
    xq_type type;
} xq_matrix;
/** A matrix of floats without gaps between its rows. */
static inline xq_matrix xq_floats(const float* data, size_t rows, size_t cols) {
    xq_matrix matrix;
    matrix.data = data;
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.stride = cols;
    matrix.type = XQ_F32;
    return matrix;
}

/** Which channels of a head RoPE turns together: (2j, 2j + 1), or (j, j + pairs). */
typedef enum xq_pairing { XQ_INTERLEAVED = 0, XQ_HALVES = 1 } xq_pairing;
/** What an engine hands over for new tokens: X to xq_step_append, or K (before or after RoPE) and V to
 * xq_step_append_kv. */
typedef enum xq_input {
    XQ_X = 0,
    XQ_KEYS_BEFORE_ROPE = 1,
    XQ_KEYS_AFTER_ROPE = 2,
    XQ_KEYS_IN_PLACE = 3
} xq_input;

/** One attention layer; struct Layer of model.hpp has the meaning and the ranges of each field. What pointers lead to is
 * read while a cache is created. */
typedef struct xq_layer {
    size_t size;                       /**< sizeof(xq_layer): xq_layer_init */
    size_t width;                      /**< D, channels of X; may be 0 where K and V are handed over */
    size_t heads, kv_heads, head_dim;  /**< H, Hkv, Dh */
    xq_input input;                    /**< XQ_X */
    xq_matrix w_k, w_v;                /**< [Hkv * Dh, D], one row per output channel */
    xq_matrix w_o;                     /**< [D, H * Dh], or none */
    xq_pairing pairing;                /**< XQ_INTERLEAVED */
    const double* inverse_frequencies; /**< [rope_pairs] radians a position; NULL: no RoPE */
    size_t rope_pairs;                 /**< at most Dh / 2 */
    double rope_factor;                /**< 1 */
    double softmax_scale;              /**< 0: 1 / sqrt(Dh) */
    double soft_cap;                   /**< 0: none */
    size_t window, chunk;              /**< 0: all tokens are seen */
    const float *b_k, *b_v;            /**< [Hkv * Dh] or NULL */
    const float* k_norm;               /**< [Dh] or NULL */
    double k_norm_epsilon;             /**< 1e-6 */
    const float* alibi_slopes;         /**< [H] or NULL */
    const float* sink_logits;          /**< [H] or NULL */
    const float* mean;                 /**< [D] mean of X, or NULL */
    xq_matrix calibration;             /**< rows of X (or of K beside V) of other text, or none */
} xq_layer;
/** Defaults: those that the comments name, 0 and NULL elsewhere. */
XQ_API void xq_layer_init(xq_layer* layer);
/** out [head_dim / 2] = base^(-2j / head_dim): the inverse frequencies of plain RoPE. */
XQ_API void xq_rope_frequencies(size_t head_dim, double base, double* out);

/** Types of prepared matrices. */
typedef enum xq_weights {
    XQ_WEIGHTS_F32 = 0,
    XQ_WEIGHTS_F16 = 1,
    XQ_WEIGHTS_BF16 = 2,
    XQ_WEIGHTS_Q8 = 3
} xq_weights;
/** Settings of a cache; struct Options of cache_types.hpp has the meaning of each field. */
typedef struct xq_options {
    size_t size;            /**< sizeof(xq_options): xq_options_init */
    size_t sinks;           /**< 4 */
    size_t recent;          /**< 128 */
    xq_type rows;           /**< XQ_F16 */
    xq_weights weights;     /**< XQ_WEIGHTS_F16 */
    int strict;             /**< 0 */
    size_t base_layer;      /**< 2 */
    size_t last_layers;     /**< 0 */
    size_t budget;          /**< bytes; 0: no limit */
    size_t workspace_budget; /**< bytes; 0: no limit */
    size_t rebuilt;         /**< bytes; 0: nothing is kept */
} xq_options;
/** Defaults: those that the comments name. */
XQ_API void xq_options_init(xq_options* options);

/** Statistics of a model's keys and values, which schemes such as head4 need: what `xquant-llm calibrate` writes. */
typedef struct xq_calibration xq_calibration;
/** Reads a file of statistics for a model of these layers. */
XQ_API xq_status xq_calibration_load(const char* path, const xq_layer* layers, size_t count, xq_calibration** out);
XQ_API void xq_calibration_free(xq_calibration* calibration);

/** A cache for all layers of one model and any number of sequences. */
typedef struct xq_cache xq_cache;
/** A sequence of a cache: a plain handle. */
typedef struct xq_sequence {
    uint64_t id;
    uint32_t cache;
} xq_sequence;

/** A cache of a scheme, "NAME" or "NAME:group=N" (xq_scheme_name lists them). options: NULL for the defaults.
 * calibration: NULL, or statistics that are not needed once this returns. */
XQ_API xq_status xq_cache_create(const char* scheme, const xq_layer* layers, size_t count, const xq_options* options,
                                 const xq_calibration* calibration, xq_cache** out);
XQ_API void xq_cache_free(xq_cache* cache);

/** How many schemes there are; 0 and a message where no code can be loaded. */
XQ_API size_t xq_scheme_count(void);
/** The name of scheme i and a sentence about it; either may be NULL. */
XQ_API xq_status xq_scheme_name(size_t i, const char** name, const char** about);

/** Bytes by purpose; struct Bytes of storage/ledger.hpp. */
typedef struct xq_bytes {
    size_t size; /**< sizeof(xq_bytes): the caller fills it in */
    size_t codes, scales, tail, sinks, accumulator, index, weights, workspace, mapped, rebuilt;
} xq_bytes;
/** What is allocated. */
XQ_API xq_status xq_cache_bytes(const xq_cache* cache, xq_bytes* out);
/** The bytes of a cache with one sequence of `tokens` tokens, before there is one. */
XQ_API xq_status xq_predict(const char* scheme, const xq_layer* layers, size_t count, const xq_options* options,
                            const xq_calibration* calibration, size_t tokens, xq_bytes* out);
/** Bits of codes, scales and zeros for `tokens` encoded tokens, per token and layer. */
XQ_API xq_status xq_bits_per_token_layer(const xq_cache* cache, size_t tokens, double* out);

/** An empty sequence. */
XQ_API xq_status xq_sequence_create(xq_cache* cache, xq_sequence* out);
/** Forgets a sequence, and frees what no other one shares. */
XQ_API xq_status xq_sequence_drop(xq_cache* cache, xq_sequence sequence);
/** A second sequence with the first `tokens` tokens (SIZE_MAX: all). Pages are shared. */
XQ_API xq_status xq_sequence_fork(xq_cache* cache, xq_sequence sequence, size_t tokens, xq_sequence* out);
/** Keeps the first `tokens` tokens. */
XQ_API xq_status xq_sequence_truncate(xq_cache* cache, xq_sequence sequence, size_t tokens);
/** Takes out tokens begin .. end; those behind them move up (keep_gap 0) or stay (1). */
XQ_API xq_status xq_sequence_erase(xq_cache* cache, xq_sequence sequence, size_t begin, size_t end, int keep_gap);
/** Moves tokens begin .. end by `delta` positions, exactly; end SIZE_MAX: all from `begin` on, and the next one. */
XQ_API xq_status xq_sequence_shift(xq_cache* cache, xq_sequence sequence, size_t begin, size_t end, int64_t delta);
/** Says where the next token will stand. */
XQ_API xq_status xq_sequence_set_next_position(xq_cache* cache, xq_sequence sequence, int64_t position);
/** Sequence i becomes what sequence parents[i] of the list was. */
XQ_API xq_status xq_sequence_gather(xq_cache* cache, const xq_sequence* sequences, const size_t* parents, size_t count);
/** Encodes every row outside the window now: for a sequence that rests. */
XQ_API xq_status xq_sequence_seal(xq_cache* cache, xq_sequence sequence);
/** Moves rows together where tokens were erased. */
XQ_API xq_status xq_sequence_compact(xq_cache* cache, xq_sequence sequence);
/** Tokens of a sequence. */
XQ_API xq_status xq_sequence_size(const xq_cache* cache, xq_sequence sequence, size_t* out);
/** The position of the next token. */
XQ_API xq_status xq_sequence_next_position(const xq_cache* cache, xq_sequence sequence, int64_t* out);
/** From how many tokens on truncate and fork accept every number. */
XQ_API xq_status xq_sequence_shortest_prefix(const xq_cache* cache, xq_sequence sequence, size_t* out);

/** Threads: calls task(of, 0) .. task(of, n - 1), on any threads, and returns when all have ended. A null pointer to an
 * executor means the calling thread. */
typedef struct xq_executor {
    void (*parallel_for)(void* user, size_t n, void (*task)(void* of, size_t i), void* of);
    void* user;
} xq_executor;
/** A pool of `threads` threads, the calling one among them (0: one for each processor). Used by one call at a time. */
typedef struct xq_pool xq_pool;
XQ_API xq_status xq_pool_create(size_t threads, xq_pool** out);
XQ_API void xq_pool_free(xq_pool* pool);
/** The executor of a pool, which belongs to it. */
XQ_API const xq_executor* xq_pool_executor(const xq_pool* pool);

/** A sequence of another cache of this model, of what `from` has stored of `sequence`; transcode.hpp. `to` has no new
 * sequence where this fails. */
XQ_API xq_status xq_sequence_transcode(const xq_cache* from, xq_sequence sequence, xq_cache* to,
                                       const xq_executor* threads, xq_sequence* out);

/** What a cache has to serve, and who asks; planner.hpp. */
typedef struct xq_plan_request {
    size_t size;                /**< sizeof(xq_plan_request): xq_plan_request_init */
    size_t context;             /**< 4096: tokens cached of each sequence */
    size_t sequences;           /**< 1: that take a token at once */
    size_t memory;              /**< bytes that caches and prepared weights may take; 0: no limit */
    const char* const* schemes; /**< [scheme_count] names, or NULL: all schemes */
    size_t scheme_count;
    const char* machine;        /**< the file of what this machine can do: measured, and written, where it is not there;
                                   NULL: measured each time, in a second or two */
    size_t machine_threads;     /**< 1: threads that attention runs on */
} xq_plan_request;
/** Defaults: those that the comments name, 0 and NULL elsewhere. */
XQ_API void xq_plan_request_init(xq_plan_request* request);
/** Schemes as they would be for a model. */
typedef struct xq_plan xq_plan;
/** Looks at schemes without making a cache. options: of the caches, NULL for the defaults. calibration: as for
 * xq_cache_create; without sensitivities in it, divergences are not known. XQ_STATE_ERROR without XQ_FEATURE_SVD. */
XQ_API xq_status xq_plan_create(const xq_layer* layers, size_t count, const xq_options* options,
                                const xq_calibration* calibration, const xq_plan_request* request,
                                const xq_executor* threads, xq_plan** out);
XQ_API void xq_plan_free(xq_plan* plan);
/** A scheme of a plan. Texts belong to the plan. */
typedef struct xq_planned {
    size_t size;              /**< sizeof(xq_planned): the caller fills it in */
    const char* name;         /**< as xq_cache_create takes it */
    const char* unavailable;  /**< why there is no such cache of this model, or "" */
    size_t cache, weights;    /**< bytes of all sequences, and of prepared weights */
    double read;              /**< bytes that a token of every sequence reads */
    double seconds;           /**< that it takes in the cache */
    double divergence;        /**< mean KLD from the exact cache, in nats; NAN: not known */
    const char* unknown;      /**< why the divergence is not known, or "" */
    int fits;                 /**< into xq_plan_request.memory */
    const char* dominated_by; /**< a scheme that is as good in every respect and better in one, or "" */
} xq_planned;
/** How many schemes a plan has, and scheme i. */
XQ_API size_t xq_plan_count(const xq_plan* plan);
XQ_API xq_status xq_plan_scheme(const xq_plan* plan, size_t i, xq_planned* out);

/** New tokens of a sequence in a step; struct StepPart of cache_types.hpp. */
typedef struct xq_part {
    xq_sequence sequence;
    size_t tokens;
    const int32_t* parents; /**< [tokens] for drafts that are a tree, or NULL */
    const uint32_t* rows;   /**< [tokens] the row of the engine's matrices that is each token's, or NULL */
} xq_part;
/** What rows of a step see: tokens up to their own, or all. */
typedef enum xq_visibility { XQ_CAUSAL = 0, XQ_WHOLE = 1 } xq_visibility;

/** New tokens on their way through the layers. Freed without a commit, it leaves the cache as it was. */
typedef struct xq_step xq_step;
/** Starts a step, and allocates all that it will store. */
XQ_API xq_status xq_step_begin(xq_cache* cache, const xq_part* parts, size_t count, xq_step** out);
XQ_API void xq_step_free(xq_step* step);
/** Tokens of all parts: n. 0 for NULL. */
XQ_API size_t xq_step_size(const xq_step* step);
/** Stores a layer's rows x [n, D]; layers come in order. */
XQ_API xq_status xq_step_append(xq_step* step, size_t layer, xq_matrix x, const xq_executor* threads);
/** Likewise k and v [n, Hkv * Dh] of a layer whose input is not XQ_X. */
XQ_API xq_status xq_step_append_kv(xq_step* step, size_t layer, xq_matrix k, xq_matrix v, const xq_executor* threads);
/** Attention of a layer that was appended: q [n, H * Dh] after RoPE -> out, rows out_stride floats apart (0: H * Dh). */
XQ_API xq_status xq_step_attend(xq_step* step, size_t layer, xq_matrix q, float* out, size_t out_stride,
                                xq_visibility visibility, const xq_executor* threads);
/** The sequences have the step's tokens from here on. The step can only be freed afterwards. */
XQ_API xq_status xq_step_commit(xq_step* step);
/** xq_step_commit for drafts: rows kept [count] of the step alone, a path, become part of their sequences. */
XQ_API xq_status xq_step_commit_kept(xq_step* step, const size_t* kept, size_t count);

/** Query rows of a sequence. */
typedef struct xq_query {
    xq_sequence sequence;
    size_t rows;
} xq_query;
/** Attention over what sequences have stored, without a step: q and out [rows of all parts, H * Dh]. */
XQ_API xq_status xq_attend(const xq_cache* cache, size_t layer, const xq_query* parts, size_t count, xq_matrix q,
                           float* out, size_t out_stride, xq_visibility visibility, const xq_executor* threads);

/** Saves sequences in a file, which replaces `path` once it is complete. note: a text that is kept beside them, or
 * NULL. */
XQ_API xq_status xq_save(const xq_cache* cache, const xq_sequence* sequences, size_t count, const char* path,
                         const char* note);
/** xq_save, but `sink` is given the bytes, front to back; other than 0 means that it takes no more. */
XQ_API xq_status xq_save_to(const xq_cache* cache, const xq_sequence* sequences, size_t count, const char* note,
                            int (*sink)(void* user, const void* bytes, size_t n), void* user);
/** What was loaded: freed by xq_loaded_free. The sequences belong to the cache. */
typedef struct xq_loaded xq_loaded;
/** Adds the sequences of a file to a cache of the same scheme and model. Its pages are read where they lie in it. */
XQ_API xq_status xq_load(xq_cache* cache, const char* path, xq_loaded** out);
/** xq_load, but `source` fills in n bytes; other than 0 means that there are none. */
XQ_API xq_status xq_load_from(xq_cache* cache, int (*source)(void* user, void* bytes, size_t n), void* user,
                              xq_loaded** out);
XQ_API void xq_loaded_free(xq_loaded* loaded);
/** How many sequences were loaded, and sequence i. */
XQ_API size_t xq_loaded_count(const xq_loaded* loaded);
XQ_API xq_sequence xq_loaded_sequence(const xq_loaded* loaded, size_t i);
/** The note that was saved. */
XQ_API const char* xq_loaded_note(const xq_loaded* loaded);

#ifdef __cplusplus
}
#endif

#endif /* XQUANT_XQUANT_H */
