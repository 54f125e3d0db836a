/* What a C program sees of libxquant: every function, every kind of status, and that nothing changes where one fails.
 *
 *     c_interface [--svd on|off] [--files on|off] [--short on|off]
 *
 * --short on: the functions about the library and those about arguments alone, for an emulated processor. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xquant/xquant.h>

enum { layers = 2, heads = 4, kv_heads = 2, head_dim = 64, kv_width = kv_heads * head_dim, q_width = heads * head_dim };
enum { most_rows = 400 };

static int failures = 0;
#define CHECK(holds)                                                                   \
    do {                                                                               \
        if (!(holds)) {                                                                \
            printf("FAILED, line %d: %s; last message: %s\n", __LINE__, #holds, xq_message()); \
            ++failures;                                                                \
        }                                                                              \
    } while (0)
#define FAILS(expected, words, call)                       \
    do {                                                   \
        CHECK((call) == (expected));                       \
        CHECK(strstr(xq_message(), (words)) != NULL);      \
    } while (0)

static double frequencies[head_dim / 2];

static void make_model(xq_layer* model) {
    xq_rope_frequencies(head_dim, 10000, frequencies);
    for (size_t i = 0; i < layers; ++i) {
        xq_layer_init(&model[i]);
        model[i].heads = heads;
        model[i].kv_heads = kv_heads;
        model[i].head_dim = head_dim;
        model[i].input = XQ_KEYS_BEFORE_ROPE;
        model[i].inverse_frequencies = frequencies;
        model[i].rope_pairs = head_dim / 2;
    }
}

static float k_rows[most_rows * kv_width], v_rows[most_rows * kv_width], q_rows[most_rows * q_width];
static float out_rows[most_rows * q_width];

static void fill(float* to, unsigned seed, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        seed = seed * 1664525U + 1013904223U;
        to[i] = (float)(seed >> 8) / 8388608.0F - 1.0F;
    }
}

/* Adds n tokens; the last layer's answer to the last of them goes to `answer` [q_width], if given. */
static void feed(xq_cache* cache, xq_sequence sequence, size_t n, unsigned seed, const xq_executor* threads,
                 float* answer) {
    const xq_part part = {sequence, n, NULL, NULL};
    xq_step* step = NULL;
    CHECK(xq_step_begin(cache, &part, 1, &step) == XQ_OK);
    CHECK(xq_step_size(step) == n);
    for (size_t i = 0; i < layers; ++i) {
        fill(k_rows, seed + 10 * (unsigned)i, n * kv_width);
        fill(v_rows, seed + 10 * (unsigned)i + 1, n * kv_width);
        fill(q_rows, seed + 10 * (unsigned)i + 2, n * q_width);
        CHECK(xq_step_append_kv(step, i, xq_floats(k_rows, n, kv_width), xq_floats(v_rows, n, kv_width), threads) ==
              XQ_OK);
        CHECK(xq_step_attend(step, i, xq_floats(q_rows, n, q_width), out_rows, 0, XQ_CAUSAL, threads) == XQ_OK);
    }
    CHECK(xq_step_commit(step) == XQ_OK);
    xq_step_free(step);
    if (answer != NULL) memcpy(answer, out_rows + (n - 1) * q_width, q_width * sizeof *answer);
}

static xq_cache* make(const char* scheme, const xq_options* options) {
    xq_layer model[layers];
    xq_cache* cache = NULL;
    make_model(model);
    CHECK(xq_cache_create(scheme, model, layers, options, NULL, &cache) == XQ_OK);
    return cache;
}

static size_t size_of(const xq_cache* cache, xq_sequence sequence) {
    size_t size = 0;
    CHECK(xq_sequence_size(cache, sequence, &size) == XQ_OK);
    return size;
}

static size_t stored(const xq_cache* cache) {
    xq_bytes bytes = {0};
    bytes.size = sizeof bytes;
    CHECK(xq_cache_bytes(cache, &bytes) == XQ_OK);
    return bytes.codes + bytes.scales + bytes.tail + bytes.sinks + bytes.index;
}

static void check_library(int svd, int files) {
    const char *level = NULL, *backend = NULL, *name = NULL, *about = NULL;
    int has_kv4 = 0;
    CHECK(xq_message()[0] == '\0');
    CHECK(strlen(xq_version()) >= 5);
    CHECK(xq_level(&level, &backend) == XQ_OK && level != NULL && backend != NULL);
    CHECK(xq_has(XQ_FEATURE_SVD) == svd);
    CHECK(xq_has(XQ_FEATURE_FILES) == files);
    CHECK(xq_scheme_count() > 20);
    for (size_t i = 0; i < xq_scheme_count(); ++i) {
        CHECK(xq_scheme_name(i, &name, &about) == XQ_OK && strlen(about) > 5);
        has_kv4 |= strcmp(name, "kv4") == 0;
    }
    CHECK(has_kv4);
    FAILS(XQ_SHAPE_ERROR, "scheme", xq_scheme_name(xq_scheme_count(), &name, NULL));
    printf("xquant %s, level %s, backend %s, %zu schemes\n", xq_version(), level, backend, xq_scheme_count());
}

static void check_sequences(void) {
    xq_cache* const cache = make("kv4", NULL);
    xq_sequence a, b, list[2];
    const size_t parents[2] = {1, 1};
    float first[q_width], second[q_width];
    int64_t position = 0;
    size_t least = 0;
    double bits = 0;
    CHECK(xq_sequence_create(cache, &a) == XQ_OK);
    feed(cache, a, 300, 1, NULL, NULL);
    CHECK(xq_sequence_fork(cache, a, SIZE_MAX, &b) == XQ_OK && size_of(cache, b) == 300);
    feed(cache, a, 1, 2, NULL, first);
    feed(cache, b, 1, 2, NULL, second);
    CHECK(first[0] != 0 && memcmp(first, second, sizeof first) == 0);
    CHECK(xq_sequence_shortest_prefix(cache, b, &least) == XQ_OK && least <= 301);
    CHECK(xq_sequence_truncate(cache, b, 280) == XQ_OK && size_of(cache, b) == 280);
    CHECK(xq_sequence_erase(cache, b, 10, 40, 0) == XQ_OK && size_of(cache, b) == 250);
    CHECK(xq_sequence_next_position(cache, b, &position) == XQ_OK && position == 250);
    CHECK(xq_sequence_shift(cache, b, 100, SIZE_MAX, 7) == XQ_OK);
    CHECK(xq_sequence_shift(cache, b, 100, 120, -3) == XQ_OK);
    CHECK(xq_sequence_next_position(cache, b, &position) == XQ_OK && position == 257);
    CHECK(xq_sequence_set_next_position(cache, b, 300) == XQ_OK);
    CHECK(xq_sequence_compact(cache, b) == XQ_OK);
    CHECK(xq_sequence_seal(cache, b) == XQ_OK);
    feed(cache, b, 1, 3, NULL, second);
    CHECK(memcmp(first, second, sizeof first) != 0);
    list[0] = a;
    list[1] = b;
    CHECK(xq_sequence_gather(cache, list, parents, 2) == XQ_OK && size_of(cache, a) == 251);
    CHECK(xq_bits_per_token_layer(cache, 1024, &bits) == XQ_OK && bits > 1000 && bits < 1300);
    CHECK(xq_sequence_drop(cache, a) == XQ_OK);
    FAILS(XQ_SEQUENCE_ERROR, "sequence", xq_sequence_drop(cache, a));
    FAILS(XQ_SEQUENCE_ERROR, "sequence", xq_sequence_truncate(cache, a, 1));
    xq_cache_free(cache);
}

static void check_steps(void) {
    xq_cache* const cache = make("kv4", NULL);
    xq_pool* pool = NULL;
    xq_sequence a, b;
    xq_step* step = NULL;
    xq_query query;
    float serial[q_width], threaded[q_width], stored_answer[q_width];
    const int32_t tree[3] = {-1, 0, 0};
    const size_t kept[2] = {0, 2};
    xq_part part;
    CHECK(xq_sequence_create(cache, &a) == XQ_OK && xq_sequence_create(cache, &b) == XQ_OK);
    CHECK(xq_pool_create(3, &pool) == XQ_OK);
    feed(cache, a, most_rows, 5, NULL, serial);
    feed(cache, b, most_rows, 5, xq_pool_executor(pool), threaded);
    CHECK(serial[0] != 0 && memcmp(serial, threaded, sizeof serial) == 0);

    query.sequence = a;
    query.rows = 1;
    fill(q_rows, 5 + 12, most_rows * q_width);
    CHECK(xq_attend(cache, 1, &query, 1, xq_floats(q_rows + (most_rows - 1) * q_width, 1, q_width), stored_answer, 0,
                    XQ_CAUSAL, NULL) == XQ_OK);
    for (size_t i = 0; i < q_width; ++i) CHECK(fabsf(stored_answer[i] - serial[i]) < 0.02F);

    part.sequence = a;
    part.tokens = 3;
    part.parents = tree;
    part.rows = NULL;
    CHECK(xq_step_begin(cache, &part, 1, &step) == XQ_OK);
    for (size_t i = 0; i < layers; ++i) {
        CHECK(xq_step_append_kv(step, i, xq_floats(k_rows, 3, kv_width), xq_floats(v_rows, 3, kv_width), NULL) == XQ_OK);
    }
    FAILS(XQ_STATE_ERROR, "tree", xq_step_commit(step));
    CHECK(xq_step_commit_kept(step, kept, 2) == XQ_OK && size_of(cache, a) == most_rows + 2);
    FAILS(XQ_STATE_ERROR, "", xq_step_commit(step));
    xq_step_free(step);

    part.tokens = 5;
    part.parents = NULL;
    CHECK(xq_step_begin(cache, &part, 1, &step) == XQ_OK);
    FAILS(XQ_SHAPE_ERROR, "k", xq_step_append_kv(step, 0, xq_floats(k_rows, 4, kv_width),
                                                 xq_floats(v_rows, 5, kv_width), NULL));
    FAILS(XQ_STATE_ERROR, "layer", xq_step_append_kv(step, 1, xq_floats(k_rows, 5, kv_width),
                                                     xq_floats(v_rows, 5, kv_width), NULL));
    k_rows[7] = NAN;
    FAILS(XQ_VALUE_ERROR, "finite", xq_step_append_kv(step, 0, xq_floats(k_rows, 5, kv_width),
                                                      xq_floats(v_rows, 5, kv_width), NULL));
    FAILS(XQ_STATE_ERROR, "", xq_step_append(step, 0, xq_floats(k_rows, 5, kv_width), NULL));
    xq_step_free(step); /* without a commit */
    CHECK(size_of(cache, a) == most_rows + 2);
    xq_pool_free(pool);
    xq_cache_free(cache);
}

static void check_arguments(void) {
    xq_layer model[layers];
    xq_options options;
    xq_bytes bytes = {0};
    xq_cache* cache = NULL;
    xq_sequence sequence;
    xq_step* step = NULL;
    xq_part part = {{0, 0}, 4000, NULL, NULL};
    make_model(model);
    FAILS(XQ_SHAPE_ERROR, "'kv44'", xq_cache_create("kv44", model, layers, NULL, NULL, &cache));
    FAILS(XQ_SHAPE_ERROR, "scheme", xq_cache_create(NULL, model, layers, NULL, NULL, &cache));
    FAILS(XQ_SHAPE_ERROR, "out", xq_cache_create("kv4", model, layers, NULL, NULL, NULL));
    FAILS(XQ_SHAPE_ERROR, "layers", xq_cache_create("kv4", NULL, layers, NULL, NULL, &cache));
    FAILS(XQ_SHAPE_ERROR, "no layers", xq_cache_create("kv4", model, 0, NULL, NULL, &cache));
    FAILS(XQ_SHAPE_ERROR, "cache", xq_sequence_create(NULL, &sequence));
    FAILS(XQ_SHAPE_ERROR, "step", xq_step_commit(NULL));
    model[1].heads = 3;
    FAILS(XQ_SHAPE_ERROR, "layer 1", xq_cache_create("kv4", model, layers, NULL, NULL, &cache));
    make_model(model);
    model[0].input = (xq_input)9;
    FAILS(XQ_SHAPE_ERROR, "xq_layer.input is 9", xq_cache_create("kv4", model, layers, NULL, NULL, &cache));
    make_model(model);
    model[1].size = 0;
    FAILS(XQ_SHAPE_ERROR, "xq_layer.size", xq_cache_create("kv4", model, layers, NULL, NULL, &cache));
    make_model(model);
    model[1].softmax_scale = NAN;
    FAILS(XQ_VALUE_ERROR, "softmax_scale", xq_cache_create("kv4", model, layers, NULL, NULL, &cache));
    make_model(model);
    CHECK(cache == NULL);

    /* A program that was compiled when the struct ended behind `recent`: the rest has its defaults. */
    xq_options_init(&options);
    CHECK(options.sinks == 4 && options.recent == 128 && options.rows == XQ_F16 && options.weights == XQ_WEIGHTS_F16);
    options.recent = 16;
    options.budget = 1;
    options.size = offsetof(xq_options, rows);
    CHECK(xq_cache_create("kv4", model, layers, &options, NULL, &cache) == XQ_OK);
    CHECK(xq_sequence_create(cache, &sequence) == XQ_OK);
    feed(cache, sequence, 10, 1, NULL, NULL);
    xq_cache_free(cache);

    bytes.size = sizeof bytes;
    xq_options_init(&options);
    CHECK(xq_predict("kv4", model, layers, &options, NULL, 4000, &bytes) == XQ_OK && bytes.codes > 400000);
    options.budget = 200000;
    CHECK(xq_cache_create("kv4", model, layers, &options, NULL, &cache) == XQ_OK);
    CHECK(xq_sequence_create(cache, &sequence) == XQ_OK);
    {
        const size_t before = stored(cache);
        part.sequence = sequence;
        FAILS(XQ_BUDGET_ERROR, "budget of 200000", xq_step_begin(cache, &part, 1, &step));
        CHECK(step == NULL && stored(cache) == before);
    }
    bytes.size = 3;
    FAILS(XQ_SHAPE_ERROR, "xq_bytes.size is 3", xq_cache_bytes(cache, &bytes));
    xq_cache_free(cache);
    xq_cache_free(NULL);
    xq_step_free(NULL);
    xq_pool_free(NULL);
    xq_loaded_free(NULL);
    xq_calibration_free(NULL);
}

struct file {
    unsigned char bytes[2000000];
    size_t size, at;
    int refuse;
};
static struct file saved;

static int take(void* user, const void* bytes, size_t n) {
    struct file* const file = user;
    if (file->refuse != 0 || file->size + n > sizeof file->bytes) return 7;
    memcpy(file->bytes + file->size, bytes, n);
    file->size += n;
    return 0;
}
static int give(void* user, void* bytes, size_t n) {
    struct file* const file = user;
    if (file->at + n > file->size) return 9;
    memcpy(bytes, file->bytes + file->at, n);
    file->at += n;
    return 0;
}

static void check_files(int there) {
    xq_cache *const from = make("kv4", NULL), *const to = make("kv4", NULL), *const other = make("kv8", NULL);
    xq_layer model[layers];
    xq_calibration* calibration = NULL;
    xq_sequence sequence;
    xq_loaded* loaded = NULL;
    float expected[q_width], found[q_width];
    const char* const path = "c_interface.xq";
    make_model(model);
    CHECK(xq_sequence_create(from, &sequence) == XQ_OK);
    feed(from, sequence, 300, 4, NULL, NULL);
    if (!there) {
        FAILS(XQ_STATE_ERROR, "xxHash", xq_save(from, &sequence, 1, path, NULL));
    } else {
        CHECK(xq_save_to(from, &sequence, 1, "a note", take, &saved) == XQ_OK && saved.size > 10000);
        CHECK(xq_load_from(to, give, &saved, &loaded) == XQ_OK);
        CHECK(xq_loaded_count(loaded) == 1 && strcmp(xq_loaded_note(loaded), "a note") == 0);
        feed(from, sequence, 1, 6, NULL, expected);
        feed(to, xq_loaded_sequence(loaded, 0), 1, 6, NULL, found);
        CHECK(expected[0] != 0 && memcmp(expected, found, sizeof found) == 0);
        CHECK(xq_loaded_sequence(loaded, 1).cache == 0);
        xq_loaded_free(loaded);

        CHECK(xq_save(from, &sequence, 1, path, NULL) == XQ_OK);
        CHECK(xq_load(to, path, &loaded) == XQ_OK && size_of(to, xq_loaded_sequence(loaded, 0)) == 301);
        xq_loaded_free(loaded);
        loaded = NULL;
        FAILS(XQ_MISMATCH_ERROR, "another quantizer", xq_load(other, path, &loaded));
        remove(path);
        FAILS(XQ_FILE_ERROR, path, xq_load(to, path, &loaded));
        saved.at = 0;
        saved.bytes[saved.size - 50] ^= 1;
        FAILS(XQ_DAMAGE_ERROR, "damaged", xq_load_from(to, give, &saved, &loaded));
        saved.size -= 1000;
        saved.at = 0;
        FAILS(XQ_OTHER_ERROR, "the source answered 9", xq_load_from(to, give, &saved, &loaded));
        saved.refuse = 1;
        FAILS(XQ_OTHER_ERROR, "the sink answered 7", xq_save_to(from, &sequence, 1, NULL, take, &saved));
        FAILS(XQ_FILE_ERROR, "no/such", xq_calibration_load("no/such/file", model, layers, &calibration));
        CHECK(loaded == NULL && calibration == NULL);
    }
    xq_cache_free(from);
    xq_cache_free(to);
    xq_cache_free(other);
}

static void check_transcode(void) {
    xq_cache *const cold = make("kivi4", NULL), *const fast = make("f16", NULL), *const turned = make("kv4", NULL);
    xq_sequence from, to;
    float expected[q_width], found[q_width];
    double off = 0, all = 0;
    CHECK(xq_sequence_create(cold, &from) == XQ_OK);
    feed(cold, from, 300, 4, NULL, NULL);
    CHECK(xq_sequence_transcode(cold, from, fast, NULL, &to) == XQ_OK && size_of(fast, to) == 300);
    feed(cold, from, 1, 6, NULL, expected);
    feed(fast, to, 1, 6, NULL, found);
    for (size_t i = 0; i < q_width; ++i) {
        off += (double)(expected[i] - found[i]) * (expected[i] - found[i]);
        all += (double)expected[i] * expected[i];
    }
    CHECK(all > 0 && off < 1e-4 * all);
    CHECK(xq_sequence_create(turned, &from) == XQ_OK);
    feed(turned, from, 10, 4, NULL, NULL);
    FAILS(XQ_STATE_ERROR, "after RoPE", xq_sequence_transcode(turned, from, cold, NULL, &to));
    FAILS(XQ_SEQUENCE_ERROR, "sequence", xq_sequence_transcode(fast, from, turned, NULL, &to));
    FAILS(XQ_SHAPE_ERROR, "to", xq_sequence_transcode(turned, from, NULL, NULL, &to));
    xq_cache_free(cold);
    xq_cache_free(fast);
    xq_cache_free(turned);
}

static void check_plan(int svd) {
    const char* const schemes[4] = {"f16", "kv4", "head4", "kv44"};
    const char* const path = "c_machine.txt";
    xq_layer model[layers];
    xq_plan_request request;
    xq_plan* plan = NULL;
    xq_planned f16 = {0}, kv4 = {0}, head4 = {0};
    make_model(model);
    xq_plan_request_init(&request);
    CHECK(request.context == 4096 && request.sequences == 1 && request.machine_threads == 1 && request.memory == 0);
    request.schemes = schemes;
    request.scheme_count = 3;
    request.machine = path;
    request.memory = 3000000;
    remove(path);
    if (!svd) {
        FAILS(XQ_STATE_ERROR, "Eigen", xq_plan_create(model, layers, NULL, NULL, &request, NULL, &plan));
        return;
    }
    CHECK(xq_plan_create(model, layers, NULL, NULL, &request, NULL, &plan) == XQ_OK && xq_plan_count(plan) == 3);
    f16.size = kv4.size = head4.size = sizeof f16;
    CHECK(xq_plan_scheme(plan, 0, &f16) == XQ_OK && strcmp(f16.name, "f16") == 0);
    CHECK(xq_plan_scheme(plan, 1, &kv4) == XQ_OK && strcmp(kv4.name, "kv4") == 0);
    CHECK(xq_plan_scheme(plan, 2, &head4) == XQ_OK && strstr(head4.unavailable, "statistics") != NULL);
    CHECK(f16.divergence == 0 && !f16.fits && f16.seconds > 0 && f16.cache > 4000000 && f16.unknown[0] == '\0');
    CHECK(kv4.fits && kv4.seconds > 0 && kv4.cache > 1000000 && 2 * kv4.cache < f16.cache && kv4.read > 1000000);
    CHECK(isnan(kv4.divergence) && strstr(kv4.unknown, "calibration") != NULL && kv4.dominated_by[0] == '\0');
    FAILS(XQ_SHAPE_ERROR, "scheme 3 of a plan of 3", xq_plan_scheme(plan, 3, &f16));
    xq_plan_free(plan);

    /* The file of the machine is read, and holds for a number of threads. */
    request.machine_threads = 2;
    FAILS(XQ_VALUE_ERROR, "1 threads", xq_plan_create(model, layers, NULL, NULL, &request, NULL, &plan));
    request.machine_threads = 1;
    request.scheme_count = 4;
    FAILS(XQ_SHAPE_ERROR, "'kv44'", xq_plan_create(model, layers, NULL, NULL, &request, NULL, &plan));
    FAILS(XQ_SHAPE_ERROR, "request", xq_plan_create(model, layers, NULL, NULL, NULL, NULL, &plan));
    xq_plan_free(NULL);
    remove(path);
}

int main(int count, char** arguments) {
    int svd = 1, files = 1, short_run = 0;
    for (int i = 1; i + 1 < count; i += 2) {
        const int on = strcmp(arguments[i + 1], "on") == 0;
        if (strcmp(arguments[i], "--svd") == 0) svd = on;
        if (strcmp(arguments[i], "--files") == 0) files = on;
        if (strcmp(arguments[i], "--short") == 0) short_run = on;
    }
    check_library(svd, files);
    check_arguments();
    if (!short_run) {
        check_sequences();
        check_steps();
        check_files(files);
        check_transcode();
        check_plan(svd);
    }
    printf("interface: %s\n", failures == 0 ? "all checks passed" : "checks FAILED");
    return failures == 0 ? 0 : 1;
}
