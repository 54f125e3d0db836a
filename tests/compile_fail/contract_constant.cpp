#include <xquant/testing/contract.hpp>

struct Mine : xquant::Uniform<4> {
    static constexpr bool exact_constant = false;
#ifdef GOOD
    static constexpr float constant_error = 0.25F;
#endif
};

int main() { xquant::testing::check_quantizer<Mine>(); }
