"""Characters that are confusable with ASCII, and the scripts of all characters.

Written by tools/confusables.py: do not edit. The data come from confusables.txt and IdentifierType.txt (UTS 39) and
Scripts.txt (UAX 24) of Unicode 17.0.0.
Copyright (C) 1991-2025 Unicode, Inc., used under the terms in LICENSE-UNICODE.
SPDX-License-Identifier: Unicode-3.0
"""

UNICODE_VERSION = "17.0.0"

# ASCII prototype in lower case: characters.
PROTOTYPES = {
    "'": "\u02b9\u02bb\u02bc\u02bd\u02be\u02c8\u02ca\u02cb\u02f4\u2018\u2019\u201b\u2032\u2035",
    "(": "\u2768\u2772\u3014\ufd3e",
    ")": "\u2769\u2773\u3015\ufd3f",
    "*": "\u204e\u2217",
    "+": "\u16ed\u2795",
    ",": "\u201a",
    "-": "\u02d7\u2010\u2012\u2013\u2043\u2212\u2796",
    ".": "\U0001d16d",
    "/": "\u1735\u2041\u2044\u2215\u2571\u27cb\u29f8\u3033\u30ce\u31d3\u4e3f",
    "8": "\u0223",
    ":": "\u02d0\u02f8\u16ec\u1803\u205a\u2236\ua789",
    "<": "\u02c2\u2039\u276e",
    "=": "\u2e40\u30a0",
    ">": "\u02c3\u203a\u276f",
    "\\": "\u2216\u27cd\u29f5\u29f9\u31d4\u4e36",
    "^": "\u02c4\u02c6",
    "a": "\u0251\u0391\u03b1\u0410\u0430\u13aa\u15c5\u1d00\u237a\ua4ee\uab7a\U000102a0\U00016f40",
    "aa": "\ua733",
    "ae": "\u04d4\u04d5",
    "ao": "\ua735",
    "au": "\ua737",
    "av": "\ua739\ua73b",
    "ay": "\ua73d",
    "b": (
        "\u0299\u0392\u03b2\u0412\u042c\u044a\u044c\u13cf\u13f4\u13fc\u1472\u15af\u15f7\u2c82\ua4d0\uab9f\U00010282"
        "\U000102a1\U00010301\U00016eb6"
    ),
    "bi": "\u044b",
    "bl": "\u042b",
    "c": (
        "\u0421\u0441\u1004\u105a\u13df\u1d04\u2ca4\u2ca5\ua4da\uabaf\U000102a2\U00010302\U00010415\U0001043d\U0001051c"
        "\U000118e9\U000118f2\U0001f74c"
    ),
    "d": "\u0501\u13a0\u13e7\u146f\u15de\u15ea\u1d05\ua4d2\ua4d3\uab70\uabb7",
    "dz": "\u02a3",
    "e": "\u0395\u03b5\u0415\u0435\u04bd\u13ac\u1d07\u212e\u22ff\u2d39\ua4f0\uab32\uab7c\U00010286\U000118a6\U000118ae",
    "f": (
        "\u0192\u03dc\u0584\u15b4\u1e9d\ua4dd\ua730\ua799\uab35\U00010287\U000102a5\U00010525\U000118a2\U000118c2"
        "\U0001d213"
    ),
    "g": "\u018d\u0261\u0262\u050c\u050d\u0581\u13c0\u13f3\u13fb\u1d83\ua4d6\uab90",
    "h": "\u029c\u0397\u041d\u04bb\u0570\u13bb\u13c2\u157c\u2c8e\ua4e7\uab8b\uab92\U000102cf",
    "i": "\u0131\u0269\u026a\u03b9\u0456\u0582\u13a5\u2373\u2c93\ua647\uab75\U000118c3",
    "io": "\u044e",
    "j": "\u037f\u03f3\u0408\u0458\u13ab\u148d\u1d0a\ua4d9\uab7b",
    "k": "\u039a\u03ba\u041a\u13e6\u16d5\u1d0b\u2c94\ua4d7\uabb6\U00010518",
    "l": (
        "\u01c0\u029f\u0399\u0406\u04c0\u04cf\u05c0\u05d5\u05df\u0627\u0661\u06f1\u07ca\u13de\u14aa\u16c1\u2223\u23fd"
        "\u2c92\u2cd0\u2d4f\ua4e1\ua4f2\uabae\U0001028a\U00010309\U00010320\U0001041b\U00010526\U000118a3\U000118b2"
        "\U00011dda\U00011de1\U00016eaa\U00016f16\U00016f28\U0001d22a\U0001e8c7"
    ),
    "ll": "\u01c1\u05f0",
    "lo": "\u042e",
    "ls": "\u02aa",
    "lz": "\u02ab",
    "m": "\u039c\u03fa\u041c\u13b7\u15f0\u16d6\u1d0d\u2c98\ua4df\uab87\U000102b0\U00010311",
    "n": "\u0274\u039d\u03b7\u043f\u0578\u057c\u2c9a\ua4e0\U00010513",
    "o": (
        "\u039f\u03bf\u03c3\u03ed\u041e\u043e\u0555\u0585\u05e1\u0647\u0665\u06be\u06c1\u06d5\u06f5\u07c0\u0966\u09e6"
        "\u0a66\u0ae6\u0b20\u0b66\u0be6\u0c02\u0c66\u0c82\u0ce6\u0d02\u0d20\u0d66\u0d82\u0e50\u0ed0\u101d\u1040\u10ff"
        "\u12d0\u17e0\u1d0f\u1d11\u2c9e\u2c9f\u2d54\u3007\ua4f3\uab3d\U00010292\U000102ab\U00010404\U0001042c\U000104c2"
        "\U000104ea\U00010516\U000114d0\U000118b5\U000118c8\U000118d7\U000118e0\U00011de0"
    ),
    "oo": "\ua698\ua699\ua74f",
    "p": (
        "\u00fe\u01bf\u03a1\u03c1\u03f8\u0420\u0440\u0517\u13e2\u146d\u1d18\u2374\u2ca2\u2ca3\u2cce\u2ccf\ua4d1\uabb2"
        "\U00010295"
    ),
    "q": "\u051b\u0563\u0566\u2d55\ua7af",
    "r": "\u0280\u0433\u13a1\u13d2\u1587\u1d26\u2c85\ua4e3\uab47\uab48\uab71\uab81\uaba2\U000104b4\U00016f35\U0001d216",
    "rn": "\U00011700\U000118e3",
    "s": (
        "\u01bd\u0405\u0455\u054f\u0d1f\u13d5\u13da\ua4e2\ua731\uaba5\uabaa\U00010296\U00010420\U00010448\U000118c1"
        "\U00016f3a"
    ),
    "t": (
        "\u03a4\u03c4\u0422\u13a2\u1d1b\u22a4\u27d9\u2ca6\ua4d4\uab72\U00010297\U000102b1\U00010315\U000118bc\U00016f0a"
        "\U0001f768"
    ),
    "tf": "\ua777",
    "ts": "\u02a6",
    "u": (
        "\u028b\u03c5\u054d\u057d\u1200\u144c\u1d1c\u222a\u22c3\ua4f4\ua79f\uab4e\uab52\U000104ce\U000104f6\U000118b8"
        "\U000118d8\U00016f42"
    ),
    "ue": "\u1d6b",
    "uo": "\uab63",
    "v": (
        "\u03bd\u0474\u0475\u05d8\u0667\u06f7\u13d9\u142f\u1d20\u2228\u22c1\u2d38\ua4e6\ua6df\uaba9\U0001051d\U00011706"
        "\U000118a0\U000118c0\U00016f08\U0001d20d"
    ),
    "w": (
        "\u026f\u03c9\u0461\u051c\u051d\u0561\u13b3\u13d4\u1d21\u2cbd\ua4ea\uab83\uaba4\U0001170a\U0001170e\U0001170f"
        "\U000118e6\U000118ef"
    ),
    "x": (
        "\u00d7\u03a7\u03c7\u0425\u0445\u1541\u157d\u166d\u166e\u16b7\u2573\u292b\u292c\u2a2f\u2cac\u2d5d\ua4eb"
        "\U00010290\U000102b4\U00010317\U00010322\U00010527\U000118ec"
    ),
    "y": (
        "\u0263\u028f\u03a5\u03b3\u0423\u0443\u04ae\u04af\u10e7\u13a9\u13bd\u1d8c\u1eff\u2ca8\u2ca9\ua4ec\uab5a\uab79"
        "\uab8d\U000102b2\U000118a4\U000118dc\U00016f43"
    ),
    "z": "\u0396\u13c3\u1d22\ua4dc\uab93\U000102f5\U000118a9\U000118c4\U000118e5",
    "{": "\u2774\U0001d114",
    "}": "\u2775",
    "~": "\u2053\u223c",
}
# Those that are Latin letters of living languages (Identifier_Type Recommended).
LIVING_LATIN = "\u00fe\u0131\u0192\u0263\u0269\u028b"
# First and last character of each range. Common and inherited characters are left out.
SCRIPTS = {
    "Adlam": "\U0001e900\U0001e95f",
    "Ahom": "\U00011700\U00011746",
    "Anatolian_Hieroglyphs": "\U00014400\U00014646",
    "Arabic": (
        "\u0600\u0604\u0606\u060b\u060d\u061a\u061c\u061e\u0620\u063f\u0641\u064a\u0656\u066f\u0671\u06dc\u06de\u06ff"
        "\u0750\u077f\u0870\u08e1\u08e3\u08ff\ufb50\ufd3d\ufd40\ufdff\ufe70\ufefc\U00010e60\U00010e7e\U00010ec2"
        "\U00010eff\U0001ee00\U0001eef1"
    ),
    "Armenian": "\u0531\u058f\ufb13\ufb17",
    "Avestan": "\U00010b00\U00010b3f",
    "Balinese": "\u1b00\u1b7f",
    "Bamum": "\ua6a0\ua6f7\U00016800\U00016a38",
    "Bassa_Vah": "\U00016ad0\U00016af5",
    "Batak": "\u1bc0\u1bff",
    "Bengali": "\u0980\u09fe",
    "Beria_Erfe": "\U00016ea0\U00016ed3",
    "Bhaiksuki": "\U00011c00\U00011c6c",
    "Bopomofo": "\u02ea\u02eb\u3105\u312f\u31a0\u31bf",
    "Brahmi": "\U00011000\U0001107f",
    "Braille": "\u2800\u28ff",
    "Buginese": "\u1a00\u1a1f",
    "Buhid": "\u1740\u1753",
    "Canadian_Aboriginal": "\u1400\u167f\u18b0\u18f5\U00011ab0\U00011abf",
    "Carian": "\U000102a0\U000102d0",
    "Caucasian_Albanian": "\U00010530\U0001056f",
    "Chakma": "\U00011100\U00011147",
    "Cham": "\uaa00\uaa5f",
    "Cherokee": "\u13a0\u13fd\uab70\uabbf",
    "Chorasmian": "\U00010fb0\U00010fcb",
    "Coptic": "\u03e2\u03ef\u2c80\u2cff",
    "Cuneiform": "\U00012000\U00012543",
    "Cypriot": "\U00010800\U0001083f",
    "Cypro_Minoan": "\U00012f90\U00012ff2",
    "Cyrillic": (
        "\u0400\u0484\u0487\u052f\u1c80\u1c8a\u1d2b\u1d2b\u1d78\u1d78\u2de0\u2dff\ua640\ua69f\ufe2e\ufe2f\U0001e030"
        "\U0001e08f"
    ),
    "Deseret": "\U00010400\U0001044f",
    "Devanagari": "\u0900\u0950\u0955\u0963\u0966\u097f\ua8e0\ua8ff\U00011b00\U00011b09",
    "Dives_Akuru": "\U00011900\U00011959",
    "Dogra": "\U00011800\U0001183b",
    "Duployan": "\U0001bc00\U0001bc9f",
    "Egyptian_Hieroglyphs": "\U00013000\U000143fa",
    "Elbasan": "\U00010500\U00010527",
    "Elymaic": "\U00010fe0\U00010ff6",
    "Ethiopic": "\u1200\u1399\u2d80\u2dde\uab01\uab2e\U0001e7e0\U0001e7fe",
    "Garay": "\U00010d40\U00010d8f",
    "Georgian": "\u10a0\u10fa\u10fc\u10ff\u1c90\u1cbf\u2d00\u2d2d",
    "Glagolitic": "\u2c00\u2c5f\U0001e000\U0001e02a",
    "Gothic": "\U00010330\U0001034a",
    "Grantha": "\U00011300\U00011339\U0001133c\U00011374",
    "Greek": (
        "\u0370\u0373\u0375\u037d\u037f\u0384\u0386\u0386\u0388\u03e1\u03f0\u03ff\u1d26\u1d2a\u1d5d\u1d61\u1d66\u1d6a"
        "\u1dbf\u1dbf\u1f00\u1ffe\u2126\u2126\uab65\uab65\U00010140\U0001018e\U000101a0\U000101a0\U0001d200\U0001d245"
    ),
    "Gujarati": "\u0a81\u0aff",
    "Gunjala_Gondi": "\U00011d60\U00011da9",
    "Gurmukhi": "\u0a01\u0a76",
    "Gurung_Khema": "\U00016100\U00016139",
    "Han": (
        "\u2e80\u2fd5\u3005\u3005\u3007\u3007\u3021\u3029\u3038\u303b\u3400\u4dbf\u4e00\u9fff\uf900\ufad9\U00016fe2"
        "\U00016fe3\U00016ff0\U00016ff6\U00020000\U00033479"
    ),
    "Hangul": "\u1100\u11ff\u302e\u302f\u3131\u318e\u3200\u321e\u3260\u327e\ua960\ua97c\uac00\ud7fb\uffa0\uffdc",
    "Hanifi_Rohingya": "\U00010d00\U00010d39",
    "Hanunoo": "\u1720\u1734",
    "Hatran": "\U000108e0\U000108ff",
    "Hebrew": "\u0591\u05f4\ufb1d\ufb4f",
    "Hiragana": "\u3041\u3096\u309d\u309f\U0001b001\U0001b11f\U0001b132\U0001b152\U0001f200\U0001f200",
    "Imperial_Aramaic": "\U00010840\U0001085f",
    "Inscriptional_Pahlavi": "\U00010b60\U00010b7f",
    "Inscriptional_Parthian": "\U00010b40\U00010b5f",
    "Javanese": "\ua980\ua9cd\ua9d0\ua9df",
    "Kaithi": "\U00011080\U000110cd",
    "Kannada": "\u0c80\u0cf3",
    "Katakana": (
        "\u30a1\u30fa\u30fd\u30ff\u31f0\u31ff\u32d0\u32fe\u3300\u3357\uff66\uff6f\uff71\uff9d\U0001aff0\U0001b000"
        "\U0001b120\U0001b122\U0001b155\U0001b167"
    ),
    "Kawi": "\U00011f00\U00011f5a",
    "Kayah_Li": "\ua900\ua92d\ua92f\ua92f",
    "Kharoshthi": "\U00010a00\U00010a58",
    "Khitan_Small_Script": "\U00016fe4\U00016fe4\U00018b00\U00018cff",
    "Khmer": "\u1780\u17f9\u19e0\u19ff",
    "Khojki": "\U00011200\U00011241",
    "Khudawadi": "\U000112b0\U000112f9",
    "Kirat_Rai": "\U00016d40\U00016d79",
    "Lao": "\u0e81\u0edf",
    "Latin": (
        "\u0041\u005a\u0061\u007a\u00aa\u00aa\u00ba\u00ba\u00c0\u00d6\u00d8\u00f6\u00f8\u02b8\u02e0\u02e4\u1d00\u1d25"
        "\u1d2c\u1d5c\u1d62\u1d65\u1d6b\u1d77\u1d79\u1dbe\u1e00\u1eff\u2071\u2071\u207f\u207f\u2090\u209c\u212a\u212b"
        "\u2132\u2132\u214e\u214e\u2160\u2188\u2c60\u2c7f\ua722\ua787\ua78b\ua7ff\uab30\uab5a\uab5c\uab64\uab66\uab69"
        "\ufb00\ufb06\uff21\uff3a\uff41\uff5a\U00010780\U000107ba\U0001df00\U0001df2a"
    ),
    "Lepcha": "\u1c00\u1c4f",
    "Limbu": "\u1900\u194f",
    "Linear_A": "\U00010600\U00010767",
    "Linear_B": "\U00010000\U000100fa",
    "Lisu": "\ua4d0\ua4ff\U00011fb0\U00011fb0",
    "Lycian": "\U00010280\U0001029c",
    "Lydian": "\U00010920\U0001093f",
    "Mahajani": "\U00011150\U00011176",
    "Makasar": "\U00011ee0\U00011ef8",
    "Malayalam": "\u0d00\u0d7f",
    "Mandaic": "\u0840\u085e",
    "Manichaean": "\U00010ac0\U00010af6",
    "Marchen": "\U00011c70\U00011cb6",
    "Masaram_Gondi": "\U00011d00\U00011d59",
    "Medefaidrin": "\U00016e40\U00016e9a",
    "Meetei_Mayek": "\uaae0\uaaf6\uabc0\uabf9",
    "Mende_Kikakui": "\U0001e800\U0001e8d6",
    "Meroitic_Cursive": "\U000109a0\U000109ff",
    "Meroitic_Hieroglyphs": "\U00010980\U0001099f",
    "Miao": "\U00016f00\U00016f9f",
    "Modi": "\U00011600\U00011659",
    "Mongolian": "\u1800\u1801\u1804\u1804\u1806\u18aa\U00011660\U0001166c",
    "Mro": "\U00016a40\U00016a6f",
    "Multani": "\U00011280\U000112a9",
    "Myanmar": "\u1000\u109f\ua9e0\ua9fe\uaa60\uaa7f\U000116d0\U000116e3",
    "Nabataean": "\U00010880\U000108af",
    "Nag_Mundari": "\U0001e4d0\U0001e4f9",
    "Nandinagari": "\U000119a0\U000119e4",
    "New_Tai_Lue": "\u1980\u19df",
    "Newa": "\U00011400\U00011461",
    "Nko": "\u07c0\u07ff",
    "Nushu": "\U00016fe1\U00016fe1\U0001b170\U0001b2fb",
    "Nyiakeng_Puachue_Hmong": "\U0001e100\U0001e14f",
    "Ogham": "\u1680\u169c",
    "Ol_Chiki": "\u1c50\u1c7f",
    "Ol_Onal": "\U0001e5d0\U0001e5ff",
    "Old_Hungarian": "\U00010c80\U00010cff",
    "Old_Italic": "\U00010300\U0001032f",
    "Old_North_Arabian": "\U00010a80\U00010a9f",
    "Old_Permic": "\U00010350\U0001037a",
    "Old_Persian": "\U000103a0\U000103d5",
    "Old_Sogdian": "\U00010f00\U00010f27",
    "Old_South_Arabian": "\U00010a60\U00010a7f",
    "Old_Turkic": "\U00010c00\U00010c48",
    "Old_Uyghur": "\U00010f70\U00010f89",
    "Oriya": "\u0b01\u0b77",
    "Osage": "\U000104b0\U000104fb",
    "Osmanya": "\U00010480\U000104a9",
    "Pahawh_Hmong": "\U00016b00\U00016b8f",
    "Palmyrene": "\U00010860\U0001087f",
    "Pau_Cin_Hau": "\U00011ac0\U00011af8",
    "Phags_Pa": "\ua840\ua877",
    "Phoenician": "\U00010900\U0001091f",
    "Psalter_Pahlavi": "\U00010b80\U00010baf",
    "Rejang": "\ua930\ua95f",
    "Runic": "\u16a0\u16ea\u16ee\u16f8",
    "Samaritan": "\u0800\u083e",
    "Saurashtra": "\ua880\ua8d9",
    "Sharada": "\U00011180\U000111df\U00011b60\U00011b67",
    "Shavian": "\U00010450\U0001047f",
    "Siddham": "\U00011580\U000115dd",
    "Sidetic": "\U00010940\U00010959",
    "SignWriting": "\U0001d800\U0001daaf",
    "Sinhala": "\u0d81\u0df4\U000111e1\U000111f4",
    "Sogdian": "\U00010f30\U00010f59",
    "Sora_Sompeng": "\U000110d0\U000110f9",
    "Soyombo": "\U00011a50\U00011aa2",
    "Sundanese": "\u1b80\u1bbf\u1cc0\u1cc7",
    "Sunuwar": "\U00011bc0\U00011bf9",
    "Syloti_Nagri": "\ua800\ua82c",
    "Syriac": "\u0700\u074f\u0860\u086a",
    "Tagalog": "\u1700\u171f",
    "Tagbanwa": "\u1760\u1773",
    "Tai_Le": "\u1950\u1974",
    "Tai_Tham": "\u1a20\u1aad",
    "Tai_Viet": "\uaa80\uaadf",
    "Tai_Yo": "\U0001e6c0\U0001e6ff",
    "Takri": "\U00011680\U000116c9",
    "Tamil": "\u0b82\u0bfa\U00011fc0\U00011fff",
    "Tangsa": "\U00016a70\U00016ac9",
    "Tangut": "\U00016fe0\U00016fe0\U00017000\U00018aff\U00018d00\U00018df2",
    "Telugu": "\u0c00\u0c7f",
    "Thaana": "\u0780\u07b1",
    "Thai": "\u0e01\u0e3a\u0e40\u0e5b",
    "Tibetan": "\u0f00\u0fd4\u0fd9\u0fda",
    "Tifinagh": "\u2d30\u2d7f",
    "Tirhuta": "\U00011480\U000114d9",
    "Todhri": "\U000105c0\U000105f3",
    "Tolong_Siki": "\U00011db0\U00011de9",
    "Toto": "\U0001e290\U0001e2ae",
    "Tulu_Tigalari": "\U00011380\U000113e2",
    "Ugaritic": "\U00010380\U0001039f",
    "Vai": "\ua500\ua62b",
    "Vithkuqi": "\U00010570\U000105bc",
    "Wancho": "\U0001e2c0\U0001e2ff",
    "Warang_Citi": "\U000118a0\U000118ff",
    "Yezidi": "\U00010e80\U00010eb1",
    "Yi": "\ua000\ua4c6",
    "Zanabazar_Square": "\U00011a00\U00011a47",
}
