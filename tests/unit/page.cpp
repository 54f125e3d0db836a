/// Where the streams of a page lie, and who owns a page.
#include <xquant/storage/page.hpp>

#include <memory_resource>
#include <vector>

#include "support/catch.hpp"
#include "support/format.hpp"

using namespace xquant;
using namespace xquant::detail;

namespace {

StreamFormat format_of(const test::StoredStream& s) {
    const CodeKind kind = s.quantized ? CodeKind::planes : s.bits == 32 ? CodeKind::f32 : CodeKind::f16;
    return {static_cast<std::uint32_t>(s.width),
            static_cast<std::uint32_t>(s.group_tokens),
            static_cast<std::uint32_t>(s.group_channels),
            kind,
            static_cast<std::uint8_t>(s.bits),
            s.stores_zero,
            0,
            nullptr};
}

const std::vector<std::vector<test::StoredStream>> mixed_layers{
    {{576, 1, 128, 4}},                                            // X per token, a short group at the end
    {{192, 128, 1, 4}, {192, 1, 128, 3}},                          // keys per channel, values per token
    {{1, 1, 8, 2}, {7, 4, 16, 5}},                                 // groups wider than the row
    {{33, 1, 33, 16, false, false}, {5, 1, 5, 32, false, false}},  // rows as they are
    {{65, 1, 32, 8, true, false}},                                 // no zeros
};

}  // namespace

TEST_CASE("sections lie where docs/format.md draws them, whatever the formats and the tokens of the page") {
    for (const std::size_t tokens : {std::size_t{128}, std::size_t{32}, std::size_t{4}, std::size_t{0}}) {
        PageSizes sizes;
        const auto expected = test::page_sections(mixed_layers, tokens);
        std::size_t codes = 0, scales = 0;
        for (std::size_t layer = 0; layer < mixed_layers.size(); ++layer) {
            for (std::size_t i = 0; i < mixed_layers[layer].size(); ++i) {
                INFO(tokens << " tokens, layer " << layer << ", stream " << i);
                const test::StoredStream& stream = mixed_layers[layer][i];
                const test::Section& section = expected[layer][i];
                const PageSection found = sizes.place(format_of(stream), tokens);
                CHECK(found.codes == section.codes.begin);
                CHECK(found.codes % 64 == 0);
                if (stream.quantized) {
                    CHECK(found.scales == section.scales.begin);
                    CHECK(found.scales % 64 == 0);
                }
                if (stream.quantized && stream.stores_zero) CHECK(found.zeros == section.zeros.begin);
                if (!stream.stores_zero) CHECK(found.zeros == 0);
                CHECK(sizes.total == section.end);
                codes += section.codes.size();
                scales += section.scales.size() + section.zeros.size();
            }
        }
        CHECK(sizes.codes == codes);
        CHECK(sizes.scales == scales);
    }
}

TEST_CASE("128 tokens of 576 channels in 4 bits take 36,864 bytes of codes and 2,560 of scales and zeros") {
    PageSizes sizes;
    sizes.place(format_of({576, 1, 128, 4}), 128);
    CHECK(sizes.codes == 128 * 288);
    CHECK(sizes.scales == 128 * 5 * 4);
    CHECK(sizes.total == 128 * 288 + 128 * 5 * 4);
}

TEST_CASE("the header of a page takes 64 bytes; a page is zeroed, counted by purpose, and freed by its last owner") {
    CHECK(page_header_bytes == 64);
    Ledger ledger(std::pmr::get_default_resource());
    {
        PageFormat format(ledger, PageKind::coded, 128, 1);
        format.sizes.total = page_header_bytes;
        format.sections.push_back(format.sizes.place(format_of({100, 1, 128, 3}), 128));
        const std::size_t index = ledger.bytes().index;
        PageRef first(Page::create(ledger, format));
        CHECK(first->references() == 1);
        CHECK(reinterpret_cast<std::uintptr_t>(first.get()) % 64 == 0);
        CHECK(first->data().size() == format.sizes.total - 64);
        for (const std::byte byte : first->data()) REQUIRE(byte == std::byte{0});
        CHECK(ledger.bytes().codes == 128 * 39);  // 104 codes of 3 bits
        CHECK(ledger.bytes().scales == 128 * 4);
        CHECK(ledger.bytes().index - index == format.sizes.total - 128 * 43);
        {
            PageRef second = first, third;
            CHECK(first->references() == 2);
            third = second;
            CHECK(first->references() == 3);
            second = PageRef();
            CHECK(first->references() == 2);
            const PageRef moved = std::move(third);
            CHECK(first->references() == 2);
        }
        CHECK(first->references() == 1);
        first = PageRef();
        CHECK(ledger.bytes().codes == 0);
        CHECK(ledger.bytes().index == index);
    }
    CHECK(ledger.bytes() == Bytes{});
}
