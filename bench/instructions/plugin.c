/* A plugin of QEMU's user mode: prints to stderr, whenever the program calls write, how many instructions have run.
 * Debian's packages have no header for plugins; these are the functions of QEMU 7.2 that it takes. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*translated)(uint64_t, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* block, int operation, void* to, uint64_t value);
typedef void called(uint64_t id, unsigned thread, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                    uint64_t, uint64_t, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(uint64_t id, called* call);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);

enum { add_u64 = 0 };
static uint64_t instructions;

static void count_block(uint64_t id, struct qemu_plugin_tb* block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, add_u64, &instructions, qemu_plugin_tb_n_insns(block));
}

static int64_t write_number;

static void print_count(uint64_t id, unsigned thread, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                        uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)thread, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == write_number) fprintf(stderr, "instructions %llu\n", (unsigned long long)instructions);
}

EXPORT int qemu_plugin_version = 1;

EXPORT int qemu_plugin_install(uint64_t id, const void* information, int count, char** arguments) {
    (void)information;
    /* The number of write among the system calls: write=N. */
    if (count != 1 || sscanf(arguments[0], "write=%ld", &write_number) != 1) {
        fprintf(stderr, "plugin: wants write=N\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
    qemu_plugin_register_vcpu_syscall_cb(id, print_count);
    return 0;
}
