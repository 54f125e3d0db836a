#include <xquant/persistence.hpp>

int main() {
    try {
        static_cast<void>(xquant::inspect("no such file"));
    } catch (const xquant::file_error&) {
        return 0;
    }
    return 1;
}
