/// The GGUF reader on any bytes: it reads them or throws an llm::Error. Every value is asked for in every way, and
/// every tensor expanded.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "error.hpp"
#include "gguf.hpp"

namespace {

using llm::Gguf;

template <class F>
void read_or_refuse(F&& f) {
    try {
        f();
    } catch (const llm::Error&) {
    }
}

void ask_for_everything(const Gguf& file) {
    for (const auto& [key, value] : file.metadata()) {
        read_or_refuse([&, &name = key] { static_cast<void>(file.boolean(name)); });
        read_or_refuse([&, &name = key] { static_cast<void>(file.integer(name)); });
        read_or_refuse([&, &name = key] { static_cast<void>(file.number(name)); });
        read_or_refuse([&, &name = key] { static_cast<void>(file.text(name)); });
        read_or_refuse([&, &name = key] { static_cast<void>(file.texts(name)); });
        read_or_refuse([&, &name = key] { static_cast<void>(file.integers(name)); });
        read_or_refuse([&, &name = key] { static_cast<void>(file.numbers(name)); });
        read_or_refuse([&, &name = key] { static_cast<void>(file.tensor(name)); });
    }
    for (const auto& [name, head] : file.tensors()) {
        std::vector<float> values(head.values);
        file.expand(head, values);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto* bytes = reinterpret_cast<const std::byte*>(data);
    read_or_refuse([&] { ask_for_everything(Gguf::parse({bytes, bytes + size}, "fuzz.gguf")); });
    return 0;
}
