/* libxquant from C: a cache in 4 bits beside one in f16, on random keys and values.
 *
 *     cc decode.c $(pkg-config --cflags --libs libxquant) -lm && ./a.out [SCHEME] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xquant/xquant.h>

enum { layers = 2, heads = 6, kv_heads = 2, head_dim = 64, prompt = 1000, decoded = 50 };
enum { kv_width = kv_heads * head_dim, q_width = heads * head_dim };

static void check(xq_status status) {
    if (status == XQ_OK) return;
    fprintf(stderr, "%s\n", xq_message());
    exit(1);
}

/* n rows of numbers from -1 to 1, which depend on the seed alone. */
static xq_matrix random_rows(float* to, unsigned seed, size_t n, size_t width) {
    for (size_t i = 0; i < n * width; ++i) {
        seed = seed * 1664525U + 1013904223U;
        to[i] = (float)(seed >> 8) / 8388608.0F - 1.0F;
    }
    return xq_floats(to, n, width);
}

/* Feeds the prompt and then token by token; the last answers go to out [layers][q_width]. Returns the bytes stored. */
static size_t decode(const char* scheme, const xq_layer* model, float* out) {
    static float k[prompt * kv_width], v[prompt * kv_width], q[prompt * q_width], answers[prompt * q_width];
    xq_cache* cache;
    xq_sequence sequence;
    xq_bytes bytes = {0};
    bytes.size = sizeof bytes;
    check(xq_cache_create(scheme, model, layers, NULL, NULL, &cache));
    check(xq_sequence_create(cache, &sequence));
    for (unsigned t = 0; t <= decoded; ++t) {
        const size_t n = t == 0 ? prompt : 1;
        const xq_part part = {sequence, n, NULL, NULL};
        xq_step* step;
        check(xq_step_begin(cache, &part, 1, &step));
        for (unsigned i = 0; i < layers; ++i) {
            const unsigned seed = 3 * (t * layers + i);
            const xq_matrix keys = random_rows(k, seed, n, kv_width), values = random_rows(v, seed + 1, n, kv_width);
            check(xq_step_append_kv(step, i, keys, values, NULL));
            check(xq_step_attend(step, i, random_rows(q, seed + 2, n, q_width), answers, 0, XQ_CAUSAL, NULL));
            memcpy(out + i * q_width, answers + (n - 1) * q_width, q_width * sizeof *out);
        }
        check(xq_step_commit(step));
        xq_step_free(step);
    }
    check(xq_cache_bytes(cache, &bytes));
    xq_cache_free(cache);
    return bytes.codes + bytes.scales + bytes.tail + bytes.sinks;
}

int main(int count, char** arguments) {
    const char *scheme = count > 1 ? arguments[1] : "kv4", *level, *backend;
    static float exact[layers * q_width], found[layers * q_width];
    double frequencies[head_dim / 2], error = 0, size = 0;
    xq_layer model[layers];
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
    check(xq_level(&level, &backend));
    const size_t f16 = decode("f16", model, exact), coded = decode(scheme, model, found);
    for (size_t k = 0; k < layers * q_width; ++k) {
        error += pow(found[k] - exact[k], 2);
        size += pow(exact[k], 2);
    }
    printf("xquant %s, %s (%s): %s takes %zu bytes, f16 %zu (%.2f x); answers differ by %.3f of their size\n",
           xq_version(), level, backend, scheme, coded, f16, (double)f16 / (double)coded, sqrt(error / size));
    return 0;
}
