// Shipped axes and a user's keep the contract; one that breaks it is told.
#include <xquant/testing/contract.hpp>

#include "archetypes.hpp"
#include "support/catch.hpp"

using namespace xquant;
using testing::check_layout;

namespace {

struct LosesValues {
    static constexpr GroupShape group_shape(unsigned group) noexcept {
        return group == 128 ? GroupShape{1, 128} : GroupShape{1, 16};
    }
};
struct ThreeTokens {
    static constexpr GroupShape group_shape(unsigned group) noexcept {
        return group == 128 ? GroupShape{1, 128} : GroupShape{3, group / 3};
    }
};
struct SixteenAsLong {
    static constexpr GroupShape group_shape(unsigned group) noexcept { return {16 * group, 1}; }
};

}  // namespace

TEST_CASE("axes keep the contract") {
    CHECK_NOTHROW(check_layout<PerToken>());
    CHECK_NOTHROW(check_layout<PerChannel>());
    CHECK_NOTHROW(check_layout<FourTokens>());
}

TEST_CASE("an axis that breaks a rule is told which") {
    CHECK_THROWS_AS(check_layout<LosesValues>(), testing::contract_violation);
    CHECK_THROWS_AS(check_layout<ThreeTokens>(), testing::contract_violation);
    static_assert(axis_policy<PerToken> && axis_policy<FourTokens> && !axis_policy<SixteenAsLong>);
}
