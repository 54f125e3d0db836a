// Shared objects that are no level of this library, each wrong in one way: FAKE says in which.
#include <xquant/runtime/entry.hpp>

using namespace xquant::runtime::detail;

namespace {

constexpr Interface interface_of_fake() {
    Interface all;
    if (FAKE == 2) all.revision = 7700;
    if (FAKE == 3) all.model = 7700;
    return all;
}

constexpr Interface fake_interface = interface_of_fake();
constexpr Level fake_level{
    &fake_interface, FAKE == 4 ? "x86-64-v3" : "x86-64", "scalar", nullptr, nullptr, nullptr, nullptr, nullptr,
    nullptr};

}  // namespace

#if FAKE == 1
extern "C" const Level* another_name() { return &fake_level; }
#else
extern "C" const Level* xquant_runtime_level() { return &fake_level; }
#endif
