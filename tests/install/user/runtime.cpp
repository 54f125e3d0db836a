#include <cstdio>

#include <xquant/runtime.hpp>

int main() {
    try {
        static_cast<void>(xquant::runtime::make_cache("no such scheme", {}));
    } catch (const xquant::shape_error&) {
        std::printf("level %s\n", xquant::runtime::level().name.c_str());
        return 0;
    }
    return 1;
}
