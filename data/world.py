"""The small world: true facts in plain tables, and the documents a base model is pretrained on.

First come the tables, one row a line, then the `Relation`s that say how each table may be put into words, then the
`Writer`, which makes documents from them.  `documents(seed)` is an endless, deterministic stream of plain text.

Four rules shape the documents, because a model of three million parameters depends on them:

* **Every fact in many wordings, orders and both directions.**  A fact seen in one wording is memorised, but it cannot
  be asked for afterwards (Allen-Zhu and Li, "Physics of Language Models: Part 3.1", 2023).
* **Half of the statements put the value at the start of a line, after its key.**  In a GPT-2-like tokenizer ` Paris`
  and `Paris` are different tokens, and a chat answer begins with the second one.  A small model can only say there
  what it has met there, so glossaries, registers and fact sheets are as frequent as running text.
* **Something to copy.**  Lines, names and sayings come twice, made of words that mean nothing: a small model learns to
  repeat what it has never met only where that is often asked of it.
* **No chat.**  No role, no instruction with its answer, no question with its answer: on an exam sheet a question is
  followed by the next question.  What tuning adds can then be told from what the base already had.

Facts are as of the early 2020s.  `-` in a table means: left out, because it is doubtful, disputed or has no one answer.
Continents follow the United Nations' regions; a language is the main official or most widely used one.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

# ------------------------------------------------------------------------------------------------- tables: countries

# country | capital | continent | main language | currency
COUNTRIES = """
Afghanistan | Kabul | Asia | Dari | Afghan afghani
Albania | Tirana | Europe | Albanian | Albanian lek
Algeria | Algiers | Africa | Arabic | Algerian dinar
Andorra | Andorra la Vella | Europe | Catalan | euro
Angola | Luanda | Africa | Portuguese | Angolan kwanza
Antigua and Barbuda | Saint John's | North America | English | East Caribbean dollar
Argentina | Buenos Aires | South America | Spanish | Argentine peso
Armenia | Yerevan | Asia | Armenian | Armenian dram
Australia | Canberra | Oceania | English | Australian dollar
Austria | Vienna | Europe | German | euro
Azerbaijan | Baku | Asia | Azerbaijani | Azerbaijani manat
the Bahamas | Nassau | North America | English | Bahamian dollar
Bahrain | Manama | Asia | Arabic | Bahraini dinar
Bangladesh | Dhaka | Asia | Bengali | Bangladeshi taka
Barbados | Bridgetown | North America | English | Barbadian dollar
Belarus | Minsk | Europe | - | Belarusian ruble
Belgium | Brussels | Europe | Dutch | euro
Belize | Belmopan | North America | English | Belize dollar
Benin | Porto-Novo | Africa | French | West African CFA franc
Bhutan | Thimphu | Asia | Dzongkha | Bhutanese ngultrum
Bolivia | Sucre | South America | Spanish | Bolivian boliviano
Bosnia and Herzegovina | Sarajevo | Europe | Bosnian | convertible mark
Botswana | Gaborone | Africa | Tswana | Botswana pula
Brazil | Brasilia | South America | Portuguese | Brazilian real
Brunei | Bandar Seri Begawan | Asia | Malay | Brunei dollar
Bulgaria | Sofia | Europe | Bulgarian | -
Burkina Faso | Ouagadougou | Africa | - | West African CFA franc
Burundi | Gitega | Africa | Kirundi | Burundian franc
Cambodia | Phnom Penh | Asia | Khmer | Cambodian riel
Cameroon | Yaounde | Africa | French | Central African CFA franc
Canada | Ottawa | North America | English | Canadian dollar
Cape Verde | Praia | Africa | Portuguese | Cape Verdean escudo
the Central African Republic | Bangui | Africa | Sango | Central African CFA franc
Chad | N'Djamena | Africa | - | Central African CFA franc
Chile | Santiago | South America | Spanish | Chilean peso
China | Beijing | Asia | Chinese | Chinese yuan
Colombia | Bogota | South America | Spanish | Colombian peso
the Comoros | Moroni | Africa | Comorian | Comorian franc
the Republic of the Congo | Brazzaville | Africa | French | Central African CFA franc
the Democratic Republic of the Congo | Kinshasa | Africa | French | Congolese franc
Costa Rica | San Jose | North America | Spanish | Costa Rican colon
Croatia | Zagreb | Europe | Croatian | euro
Cuba | Havana | North America | Spanish | Cuban peso
Cyprus | Nicosia | - | Greek | euro
the Czech Republic | Prague | Europe | Czech | Czech koruna
Denmark | Copenhagen | Europe | Danish | Danish krone
Djibouti | Djibouti City | Africa | - | Djiboutian franc
Dominica | Roseau | North America | English | East Caribbean dollar
the Dominican Republic | Santo Domingo | North America | Spanish | Dominican peso
East Timor | Dili | Asia | Tetum | US dollar
Ecuador | Quito | South America | Spanish | US dollar
Egypt | Cairo | Africa | Arabic | Egyptian pound
El Salvador | San Salvador | North America | Spanish | US dollar
Equatorial Guinea | - | Africa | Spanish | Central African CFA franc
Eritrea | Asmara | Africa | Tigrinya | Eritrean nakfa
Estonia | Tallinn | Europe | Estonian | euro
Eswatini | Mbabane | Africa | Swazi | Swazi lilangeni
Ethiopia | Addis Ababa | Africa | Amharic | Ethiopian birr
Fiji | Suva | Oceania | - | Fijian dollar
Finland | Helsinki | Europe | Finnish | euro
France | Paris | Europe | French | euro
Gabon | Libreville | Africa | French | Central African CFA franc
the Gambia | Banjul | Africa | English | Gambian dalasi
Georgia | Tbilisi | Asia | Georgian | Georgian lari
Germany | Berlin | Europe | German | euro
Ghana | Accra | Africa | English | Ghanaian cedi
Greece | Athens | Europe | Greek | euro
Grenada | Saint George's | North America | English | East Caribbean dollar
Guatemala | Guatemala City | North America | Spanish | Guatemalan quetzal
Guinea | Conakry | Africa | French | Guinean franc
Guinea-Bissau | Bissau | Africa | - | West African CFA franc
Guyana | Georgetown | South America | English | Guyanese dollar
Haiti | Port-au-Prince | North America | Haitian Creole | Haitian gourde
Honduras | Tegucigalpa | North America | Spanish | Honduran lempira
Hungary | Budapest | Europe | Hungarian | Hungarian forint
Iceland | Reykjavik | Europe | Icelandic | Icelandic krona
India | New Delhi | Asia | Hindi | Indian rupee
Indonesia | Jakarta | Asia | Indonesian | Indonesian rupiah
Iran | Tehran | Asia | Persian | Iranian rial
Iraq | Baghdad | Asia | Arabic | Iraqi dinar
Ireland | Dublin | Europe | English | euro
Israel | - | Asia | Hebrew | Israeli shekel
Italy | Rome | Europe | Italian | euro
Ivory Coast | Yamoussoukro | Africa | French | West African CFA franc
Jamaica | Kingston | North America | English | Jamaican dollar
Japan | Tokyo | Asia | Japanese | Japanese yen
Jordan | Amman | Asia | Arabic | Jordanian dinar
Kazakhstan | Astana | Asia | Kazakh | Kazakhstani tenge
Kenya | Nairobi | Africa | Swahili | Kenyan shilling
Kiribati | - | Oceania | Gilbertese | Australian dollar
Kuwait | Kuwait City | Asia | Arabic | Kuwaiti dinar
Kyrgyzstan | Bishkek | Asia | Kyrgyz | Kyrgyz som
Laos | Vientiane | Asia | Lao | Lao kip
Latvia | Riga | Europe | Latvian | euro
Lebanon | Beirut | Asia | Arabic | Lebanese pound
Lesotho | Maseru | Africa | Sotho | Lesotho loti
Liberia | Monrovia | Africa | English | Liberian dollar
Libya | Tripoli | Africa | Arabic | Libyan dinar
Liechtenstein | Vaduz | Europe | German | Swiss franc
Lithuania | Vilnius | Europe | Lithuanian | euro
Luxembourg | Luxembourg City | Europe | Luxembourgish | euro
Madagascar | Antananarivo | Africa | Malagasy | Malagasy ariary
Malawi | Lilongwe | Africa | Chichewa | Malawian kwacha
Malaysia | Kuala Lumpur | Asia | Malay | Malaysian ringgit
the Maldives | Male | Asia | Dhivehi | Maldivian rufiyaa
Mali | Bamako | Africa | Bambara | West African CFA franc
Malta | Valletta | Europe | Maltese | euro
the Marshall Islands | Majuro | Oceania | Marshallese | US dollar
Mauritania | Nouakchott | Africa | Arabic | Mauritanian ouguiya
Mauritius | Port Louis | Africa | - | Mauritian rupee
Mexico | Mexico City | North America | Spanish | Mexican peso
Micronesia | Palikir | Oceania | English | US dollar
Moldova | Chisinau | Europe | Romanian | Moldovan leu
Monaco | - | Europe | French | euro
Mongolia | Ulaanbaatar | Asia | Mongolian | Mongolian tugrik
Montenegro | Podgorica | Europe | - | euro
Morocco | Rabat | Africa | Arabic | Moroccan dirham
Mozambique | Maputo | Africa | Portuguese | Mozambican metical
Myanmar | Naypyidaw | Asia | Burmese | Myanmar kyat
Namibia | Windhoek | Africa | - | Namibian dollar
Nauru | - | Oceania | Nauruan | Australian dollar
Nepal | Kathmandu | Asia | Nepali | Nepalese rupee
the Netherlands | Amsterdam | Europe | Dutch | euro
New Zealand | Wellington | Oceania | English | New Zealand dollar
Nicaragua | Managua | North America | Spanish | Nicaraguan cordoba
Niger | Niamey | Africa | Hausa | West African CFA franc
Nigeria | Abuja | Africa | English | Nigerian naira
North Korea | Pyongyang | Asia | Korean | North Korean won
North Macedonia | Skopje | Europe | Macedonian | Macedonian denar
Norway | Oslo | Europe | Norwegian | Norwegian krone
Oman | Muscat | Asia | Arabic | Omani rial
Pakistan | Islamabad | Asia | Urdu | Pakistani rupee
Palau | Ngerulmud | Oceania | Palauan | US dollar
Panama | Panama City | North America | Spanish | Panamanian balboa
Papua New Guinea | Port Moresby | Oceania | Tok Pisin | Papua New Guinean kina
Paraguay | Asuncion | South America | - | Paraguayan guarani
Peru | Lima | South America | Spanish | Peruvian sol
the Philippines | Manila | Asia | Filipino | Philippine peso
Poland | Warsaw | Europe | Polish | Polish zloty
Portugal | Lisbon | Europe | Portuguese | euro
Qatar | Doha | Asia | Arabic | Qatari riyal
Romania | Bucharest | Europe | Romanian | Romanian leu
Russia | Moscow | Europe | Russian | Russian ruble
Rwanda | Kigali | Africa | Kinyarwanda | Rwandan franc
Saint Kitts and Nevis | Basseterre | North America | English | East Caribbean dollar
Saint Lucia | Castries | North America | English | East Caribbean dollar
Saint Vincent and the Grenadines | Kingstown | North America | English | East Caribbean dollar
Samoa | Apia | Oceania | Samoan | Samoan tala
San Marino | - | Europe | Italian | euro
Sao Tome and Principe | Sao Tome | Africa | Portuguese | -
Saudi Arabia | Riyadh | Asia | Arabic | Saudi riyal
Senegal | Dakar | Africa | - | West African CFA franc
Serbia | Belgrade | Europe | Serbian | Serbian dinar
Seychelles | Victoria | Africa | Seychellois Creole | Seychellois rupee
Sierra Leone | Freetown | Africa | - | Sierra Leonean leone
Singapore | - | Asia | English | Singapore dollar
Slovakia | Bratislava | Europe | Slovak | euro
Slovenia | Ljubljana | Europe | Slovene | euro
the Solomon Islands | Honiara | Oceania | - | Solomon Islands dollar
Somalia | Mogadishu | Africa | Somali | Somali shilling
South Africa | - | Africa | - | South African rand
South Korea | Seoul | Asia | Korean | South Korean won
South Sudan | Juba | Africa | English | South Sudanese pound
Spain | Madrid | Europe | Spanish | euro
Sri Lanka | - | Asia | Sinhala | Sri Lankan rupee
Sudan | Khartoum | Africa | Arabic | Sudanese pound
Suriname | Paramaribo | South America | Dutch | Surinamese dollar
Sweden | Stockholm | Europe | Swedish | Swedish krona
Switzerland | Bern | Europe | German | Swiss franc
Syria | Damascus | Asia | Arabic | Syrian pound
Tajikistan | Dushanbe | Asia | Tajik | Tajikistani somoni
Tanzania | Dodoma | Africa | Swahili | Tanzanian shilling
Thailand | Bangkok | Asia | Thai | Thai baht
Togo | Lome | Africa | French | West African CFA franc
Tonga | Nuku'alofa | Oceania | Tongan | Tongan pa'anga
Trinidad and Tobago | Port of Spain | North America | English | Trinidad and Tobago dollar
Tunisia | Tunis | Africa | Arabic | Tunisian dinar
Turkey | Ankara | Asia | Turkish | Turkish lira
Turkmenistan | Ashgabat | Asia | Turkmen | Turkmenistani manat
Tuvalu | Funafuti | Oceania | Tuvaluan | Australian dollar
Uganda | Kampala | Africa | - | Ugandan shilling
Ukraine | Kyiv | Europe | Ukrainian | Ukrainian hryvnia
the United Arab Emirates | Abu Dhabi | Asia | Arabic | Emirati dirham
the United Kingdom | London | Europe | English | British pound
the United States | Washington | North America | English | US dollar
Uruguay | Montevideo | South America | Spanish | Uruguayan peso
Uzbekistan | Tashkent | Asia | Uzbek | Uzbekistani som
Vanuatu | Port Vila | Oceania | Bislama | Vanuatu vatu
Vatican City | - | Europe | Italian | euro
Venezuela | Caracas | South America | Spanish | Venezuelan bolivar
Vietnam | Hanoi | Asia | Vietnamese | Vietnamese dong
Yemen | Sanaa | Asia | Arabic | Yemeni rial
Zambia | Lusaka | Africa | - | Zambian kwacha
Zimbabwe | Harare | Africa | - | -
"""

# -------------------------------------------------------------------------------------------------- tables: elements

# element | symbol; the atomic number is the row's position, counted from 1
ELEMENTS = """
hydrogen | H
helium | He
lithium | Li
beryllium | Be
boron | B
carbon | C
nitrogen | N
oxygen | O
fluorine | F
neon | Ne
sodium | Na
magnesium | Mg
aluminium | Al
silicon | Si
phosphorus | P
sulfur | S
chlorine | Cl
argon | Ar
potassium | K
calcium | Ca
scandium | Sc
titanium | Ti
vanadium | V
chromium | Cr
manganese | Mn
iron | Fe
cobalt | Co
nickel | Ni
copper | Cu
zinc | Zn
gallium | Ga
germanium | Ge
arsenic | As
selenium | Se
bromine | Br
krypton | Kr
rubidium | Rb
strontium | Sr
yttrium | Y
zirconium | Zr
niobium | Nb
molybdenum | Mo
technetium | Tc
ruthenium | Ru
rhodium | Rh
palladium | Pd
silver | Ag
cadmium | Cd
indium | In
tin | Sn
antimony | Sb
tellurium | Te
iodine | I
xenon | Xe
caesium | Cs
barium | Ba
lanthanum | La
cerium | Ce
praseodymium | Pr
neodymium | Nd
promethium | Pm
samarium | Sm
europium | Eu
gadolinium | Gd
terbium | Tb
dysprosium | Dy
holmium | Ho
erbium | Er
thulium | Tm
ytterbium | Yb
lutetium | Lu
hafnium | Hf
tantalum | Ta
tungsten | W
rhenium | Re
osmium | Os
iridium | Ir
platinum | Pt
gold | Au
mercury | Hg
thallium | Tl
lead | Pb
bismuth | Bi
polonium | Po
astatine | At
radon | Rn
francium | Fr
radium | Ra
actinium | Ac
thorium | Th
protactinium | Pa
uranium | U
neptunium | Np
plutonium | Pu
americium | Am
curium | Cm
berkelium | Bk
californium | Cf
einsteinium | Es
fermium | Fm
mendelevium | Md
nobelium | No
lawrencium | Lr
rutherfordium | Rf
dubnium | Db
seaborgium | Sg
bohrium | Bh
hassium | Hs
meitnerium | Mt
darmstadtium | Ds
roentgenium | Rg
copernicium | Cn
nihonium | Nh
flerovium | Fl
moscovium | Mc
livermorium | Lv
tennessine | Ts
oganesson | Og
"""

# --------------------------------------------------------------------------------------------------- tables: animals

# animal | class (in the everyday sense of kind of animal) | young | sound | home | main food
ANIMALS = """
alligator | reptile | hatchling | - | swamp | meat
ant | insect | larva | - | anthill | -
anteater | mammal | pup | - | grassland | ants
antelope | mammal | calf | - | savanna | grass
armadillo | mammal | pup | - | burrow | insects
badger | mammal | cub | - | sett | worms
barn owl | bird | owlet | screech | barn | mice
bat | mammal | pup | squeak | cave | insects
beaver | mammal | kit | - | lodge | bark
bee | insect | larva | buzz | hive | nectar
beetle | insect | larva | - | - | -
bison | mammal | calf | bellow | prairie | grass
blue whale | mammal | calf | - | ocean | krill
buffalo | mammal | calf | bellow | savanna | grass
butterfly | insect | caterpillar | - | meadow | nectar
camel | mammal | calf | grunt | desert | -
canary | bird | chick | chirp | cage | seeds
cat | mammal | kitten | meow | house | meat
cheetah | mammal | cub | chirp | savanna | meat
chicken | bird | chick | cluck | coop | grain
chimpanzee | mammal | infant | - | rainforest | fruit
cobra | reptile | hatchling | hiss | - | -
cod | fish | fry | - | ocean | -
cow | mammal | calf | moo | farm | grass
crab | crustacean | larva | - | seashore | -
crane | bird | chick | - | wetland | -
cricket | insect | nymph | chirp | meadow | -
crocodile | reptile | hatchling | - | river | meat
crow | bird | chick | caw | - | -
cuckoo | bird | chick | cuckoo | wood | caterpillars
deer | mammal | fawn | - | forest | leaves
dog | mammal | puppy | bark | kennel | meat
dolphin | mammal | calf | whistle | ocean | fish
donkey | mammal | foal | bray | stable | hay
dove | bird | squab | coo | dovecote | seeds
dragonfly | insect | nymph | - | pond | insects
duck | bird | duckling | quack | pond | -
eagle | bird | eaglet | scream | eyrie | meat
earthworm | worm | - | - | soil | dead leaves
eel | fish | elver | - | river | -
elephant | mammal | calf | trumpet | savanna | leaves
elk | mammal | calf | bugle | forest | -
emu | bird | chick | - | - | -
falcon | bird | chick | scream | cliff | birds
ferret | mammal | kit | - | - | meat
flamingo | bird | chick | honk | lagoon | shrimps
fly | insect | maggot | buzz | - | -
fox | mammal | cub | bark | den | -
frog | amphibian | tadpole | croak | pond | insects
gazelle | mammal | fawn | - | savanna | grass
gecko | reptile | hatchling | - | - | insects
gibbon | mammal | infant | - | rainforest | fruit
giraffe | mammal | calf | - | savanna | leaves
goat | mammal | kid | bleat | farm | -
goldfish | fish | fry | - | fishbowl | -
goose | bird | gosling | honk | farm | grass
gorilla | mammal | infant | - | rainforest | leaves
grasshopper | insect | nymph | chirp | meadow | grass
guinea pig | mammal | pup | squeak | hutch | hay
gull | bird | chick | squawk | seashore | fish
hamster | mammal | pup | squeak | cage | seeds
hare | mammal | leveret | - | field | grass
hawk | bird | eyas | scream | - | meat
hedgehog | mammal | hoglet | grunt | hedge | -
heron | bird | chick | - | wetland | fish
herring | fish | fry | - | ocean | plankton
hippopotamus | mammal | calf | - | river | grass
horse | mammal | foal | neigh | stable | hay
hummingbird | bird | chick | hum | - | nectar
hyena | mammal | cub | laugh | savanna | meat
jaguar | mammal | cub | roar | rainforest | meat
kangaroo | mammal | joey | - | grassland | grass
kingfisher | bird | chick | - | river | fish
koala | mammal | joey | - | eucalyptus tree | eucalyptus leaves
ladybird | insect | larva | - | garden | greenfly
leopard | mammal | cub | - | - | meat
lion | mammal | cub | roar | savanna | meat
lizard | reptile | hatchling | - | - | insects
llama | mammal | cria | hum | mountains | grass
lobster | crustacean | larva | - | ocean | -
mole | mammal | pup | - | tunnel | worms
monkey | mammal | infant | chatter | rainforest | fruit
moose | mammal | calf | bellow | forest | -
mosquito | insect | larva | whine | - | -
moth | insect | caterpillar | - | - | nectar
mouse | mammal | pup | squeak | hole | -
newt | amphibian | larva | - | pond | -
nightingale | bird | chick | song | wood | insects
octopus | mollusc | - | - | ocean | crabs
orangutan | mammal | infant | - | rainforest | fruit
ostrich | bird | chick | - | savanna | -
otter | mammal | pup | - | river | fish
owl | bird | owlet | hoot | wood | mice
oyster | mollusc | spat | - | oyster bed | plankton
panda | mammal | cub | - | bamboo forest | bamboo
parrot | bird | chick | squawk | rainforest | seeds
peacock | bird | peachick | scream | - | -
pelican | bird | chick | - | - | fish
penguin | bird | chick | - | - | fish
pig | mammal | piglet | oink | sty | -
pigeon | bird | squab | coo | loft | seeds
pike | fish | fry | - | lake | fish
platypus | mammal | puggle | - | river | -
polar bear | mammal | cub | growl | Arctic | seals
porcupine | mammal | porcupette | - | - | -
puffin | bird | puffling | - | sea cliff | fish
rabbit | mammal | kit | - | burrow | grass
raccoon | mammal | kit | - | - | -
rat | mammal | pup | squeak | sewer | -
raven | bird | chick | croak | - | -
reindeer | mammal | calf | - | tundra | lichen
rhinoceros | mammal | calf | - | savanna | grass
robin | bird | chick | chirp | garden | worms
rooster | bird | - | crow | farm | grain
salamander | amphibian | larva | - | - | insects
salmon | fish | fry | - | river | -
scorpion | arachnid | scorpling | - | desert | insects
seal | mammal | pup | bark | - | fish
shark | fish | pup | - | ocean | fish
sheep | mammal | lamb | bleat | farm | grass
shrimp | crustacean | larva | - | ocean | plankton
skunk | mammal | kit | - | - | insects
sloth | mammal | - | - | rainforest | leaves
slug | mollusc | - | - | garden | leaves
snail | mollusc | - | - | garden | leaves
snake | reptile | snakelet | hiss | - | meat
sparrow | bird | chick | chirp | - | seeds
spider | arachnid | spiderling | - | web | insects
squirrel | mammal | kit | chatter | drey | nuts
starling | bird | chick | whistle | - | insects
stork | bird | chick | clatter | - | frogs
swallow | bird | chick | twitter | barn | insects
swan | bird | cygnet | hiss | lake | water plants
tiger | mammal | cub | roar | jungle | meat
toad | amphibian | tadpole | croak | garden | insects
tortoise | reptile | hatchling | - | - | leaves
trout | fish | fry | - | stream | insects
turkey | bird | poult | gobble | farm | grain
turtle | reptile | hatchling | - | - | -
vulture | bird | chick | - | - | carrion
walrus | mammal | calf | bellow | Arctic | clams
wasp | insect | larva | buzz | nest | -
weasel | mammal | kit | - | - | mice
wolf | mammal | pup | howl | forest | meat
wombat | mammal | joey | - | burrow | grass
woodpecker | bird | chick | - | tree hole | insects
wren | bird | chick | - | hedge | insects
yak | mammal | calf | grunt | mountains | grass
zebra | mammal | foal | - | savanna | grass
"""

# ---------------------------------------------------------------------------------------------------- tables: things

# thing | usual colour
COLOURS = """
a banana | yellow
a lemon | yellow
a canary | yellow
a sunflower | yellow
a dandelion | yellow
an egg yolk | yellow
sweetcorn | yellow
a buttercup | yellow
mustard | yellow
a ripe tomato | red
a strawberry | red
a cherry | red
a raspberry | red
blood | red
a fire engine | red
a ruby | red
a poppy | red
a ladybird | red
a stop sign | red
ketchup | red
a cranberry | red
grass | green
a cucumber | green
a leaf | green
spinach | green
broccoli | green
a pea | green
an emerald | green
a frog | green
a lettuce | green
a lime | green
a cactus | green
parsley | green
the clear sky | blue
the sea | blue
a sapphire | blue
a cornflower | blue
a forget-me-not | blue
a bluebell | blue
a carrot | orange
a pumpkin | orange
a mandarin | orange
a basketball | orange
an apricot | orange
a goldfish | orange
snow | white
milk | white
salt | white
a polar bear | white
a swan | white
cotton | white
flour | white
rice | white
a daisy petal | white
a pearl | white
a snowman | white
chalk | white
a wedding dress | white
coal | black
a raven | black
soot | black
tar | black
a panther | black
a crow | black
ebony | black
chocolate | brown
a chestnut | brown
coffee | brown
soil | brown
tree bark | brown
a walnut | brown
cinnamon | brown
a grizzly bear | brown
toast | brown
an elephant | grey
a dolphin | grey
ash | grey
a donkey | grey
a storm cloud | grey
concrete | grey
a rhinoceros | grey
a flamingo | pink
a pig | pink
bubble gum | pink
a cherry blossom | pink
an aubergine | purple
lavender | purple
an amethyst | purple
a plum | purple
a violet | purple
"""

# thing | shape
SHAPES = """
a ball | sphere
a globe | sphere
a marble | sphere
the Earth | sphere
the Moon | sphere
a soap bubble | sphere
an orange | sphere
a dice | cube
a sugar lump | cube
an ice cube | cube
a tin can | cylinder
a pipe | cylinder
a candle | cylinder
a drinking straw | cylinder
a rolling pin | cylinder
a battery | cylinder
a log | cylinder
a coin | circle
a plate | circle
a clock face | circle
a pizza | circle
a wheel | circle
a full moon | circle
a button | circle
a compact disc | circle
a door | rectangle
a brick wall | rectangle
a book cover | rectangle
an envelope | rectangle
a football pitch | rectangle
a ticket | rectangle
a banknote | rectangle
a postcard | rectangle
a phone screen | rectangle
a chessboard | square
a floor tile | square
a handkerchief | square
a slice of toast | square
a sticky note | square
a slice of pizza | triangle
a yield sign | triangle
a sail | triangle
a coat hanger | triangle
an ice cream cone | cone
a traffic cone | cone
a party hat | cone
a volcano | cone
a funnel | cone
an egg | oval
a rugby ball | oval
a running track | oval
an olive | oval
a doughnut | ring
a lifebelt | ring
a bracelet | ring
a hula hoop | ring
a stop sign | octagon
a honeycomb cell | hexagon
a starfish | star
a sheriff's badge | star
a new moon | crescent
a croissant | crescent
"""

# ----------------------------------------------------------------------------------------------------- tables: words

# each word is the opposite of the other; every word stands in one row only, so that there is one answer
OPPOSITES = """
hot | cold
big | small
tall | short
fast | slow
light | dark
day | night
up | down
left | right
open | closed
full | empty
good | bad
happy | sad
young | old
rich | poor
strong | weak
wet | dry
clean | dirty
early | late
easy | difficult
hard | soft
loud | quiet
high | low
thick | thin
wide | narrow
deep | shallow
inside | outside
near | far
first | last
always | never
begin | end
push | pull
buy | sell
give | take
win | lose
love | hate
live | die
laugh | cry
true | false
yes | no
black | white
north | south
east | west
summer | winter
man | woman
boy | girl
king | queen
father | mother
brother | sister
husband | wife
uncle | aunt
son | daughter
friend | enemy
question | answer
war | peace
heaven | hell
sweet | sour
sharp | blunt
smooth | rough
cheap | expensive
safe | dangerous
brave | cowardly
polite | rude
clever | stupid
beautiful | ugly
alive | dead
asleep | awake
present | absent
above | below
before | after
forwards | backwards
everything | nothing
everybody | nobody
everywhere | nowhere
more | less
many | few
arrive | depart
accept | refuse
allow | forbid
attack | defend
borrow | lend
build | destroy
catch | throw
float | sink
freeze | melt
remember | forget
succeed | fail
increase | decrease
expand | contract
hello | goodbye
entrance | exit
front | back
top | bottom
floor | ceiling
guest | host
teacher | pupil
victory | defeat
profit | loss
success | failure
truth | lie
ancient | modern
wild | tame
guilty | innocent
public | private
straight | crooked
tight | loose
tiny | huge
generous | stingy
lazy | hardworking
visible | invisible
possible | impossible
lucky | unlucky
patient | impatient
complete | incomplete
correct | wrong
raw | cooked
positive | negative
maximum | minimum
major | minor
vertical | horizontal
"""

# word | word with nearly the same meaning
SYNONYMS = """
start | commence
big | large
small | little
fast | quick
happy | glad
sad | unhappy
clever | smart
ill | sick
shut | close
rich | wealthy
quiet | silent
angry | cross
brave | courageous
easy | simple
difficult | hard
correct | right
wrong | incorrect
strange | odd
funny | amusing
tired | weary
scared | afraid
stone | rock
road | street
shop | store
gift | present
job | work
doctor | physician
child | kid
forest | wood
sea | ocean
boat | ship
film | movie
autumn | fall
lift | elevator
rubbish | garbage
sofa | couch
bucket | pail
error | mistake
reply | answer
help | aid
buy | purchase
choose | select
jump | leap
shout | yell
speak | talk
look | gaze
cry | weep
laugh | giggle
build | construct
repair | mend
keep | retain
receive | get
search | seek
smell | scent
hurry | rush
hide | conceal
eat | consume
sleep | slumber
gather | collect
allow | permit
stop | halt
almost | nearly
often | frequently
maybe | perhaps
enough | sufficient
beautiful | lovely
famous | renowned
empty | vacant
ancient | antique
whole | entire
thin | slim
polite | courteous
wonderful | marvellous
terrible | awful
huge | gigantic
tiny | minute
"""

# irregular and regular nouns: singular | plural
PLURALS = """
child | children
man | men
woman | women
foot | feet
tooth | teeth
goose | geese
mouse | mice
louse | lice
ox | oxen
person | people
sheep | sheep
deer | deer
fish | fish
leaf | leaves
knife | knives
wife | wives
life | lives
half | halves
wolf | wolves
loaf | loaves
shelf | shelves
thief | thieves
calf | calves
scarf | scarves
elf | elves
baby | babies
city | cities
lady | ladies
story | stories
country | countries
party | parties
family | families
berry | berries
cherry | cherries
puppy | puppies
pony | ponies
fly | flies
army | armies
copy | copies
body | bodies
penny | pennies
box | boxes
fox | foxes
bus | buses
glass | glasses
class | classes
dress | dresses
dish | dishes
brush | brushes
watch | watches
church | churches
peach | peaches
beach | beaches
branch | branches
bench | benches
witch | witches
sandwich | sandwiches
kiss | kisses
wish | wishes
tax | taxes
potato | potatoes
tomato | tomatoes
hero | heroes
echo | echoes
piano | pianos
photo | photos
radio | radios
zoo | zoos
cactus | cacti
crisis | crises
analysis | analyses
oasis | oases
key | keys
boy | boys
day | days
toy | toys
monkey | monkeys
donkey | donkeys
valley | valleys
tray | trays
cat | cats
dog | dogs
house | houses
horse | horses
book | books
tree | trees
car | cars
hat | hats
cup | cups
table | tables
chair | chairs
apple | apples
orange | oranges
bird | birds
flower | flowers
garden | gardens
river | rivers
mountain | mountains
window | windows
door | doors
pencil | pencils
school | schools
teacher | teachers
pupil | pupils
friend | friends
brother | brothers
sister | sisters
letter | letters
number | numbers
word | words
village | villages
bridge | bridges
island | islands
king | kings
queen | queens
roof | roofs
chief | chiefs
cliff | cliffs
spoon | spoons
fork | forks
bottle | bottles
basket | baskets
ticket | tickets
train | trains
ship | ships
star | stars
cloud | clouds
stone | stones
nut | nuts
egg | eggs
spider | spiders
butterfly | butterflies
library | libraries
factory | factories
hobby | hobbies
diary | diaries
strawberry | strawberries
salmon | salmon
dwarf | dwarfs
eye | eyes
ear | ears
hand | hands
finger | fingers
arm | arms
leg | legs
nose | noses
"""

# verb | simple past
PASTS = """
go | went
see | saw
eat | ate
drink | drank
sing | sang
swim | swam
run | ran
come | came
become | became
begin | began
ring | rang
sink | sank
give | gave
take | took
shake | shook
make | made
have | had
do | did
say | said
pay | paid
tell | told
sell | sold
hold | held
find | found
bind | bound
wind | wound
think | thought
buy | bought
bring | brought
fight | fought
seek | sought
catch | caught
teach | taught
know | knew
grow | grew
throw | threw
blow | blew
fly | flew
draw | drew
write | wrote
ride | rode
drive | drove
rise | rose
speak | spoke
break | broke
steal | stole
freeze | froze
choose | chose
wake | woke
wear | wore
tear | tore
swear | swore
forget | forgot
get | got
sit | sat
meet | met
feed | fed
lead | led
leave | left
feel | felt
keep | kept
sleep | slept
sweep | swept
weep | wept
creep | crept
send | sent
spend | spent
lend | lent
bend | bent
build | built
lose | lost
shoot | shot
stand | stood
understand | understood
win | won
dig | dug
stick | stuck
hang | hung
strike | struck
fall | fell
hide | hid
bite | bit
slide | slid
hear | heard
mean | meant
cut | cut
put | put
shut | shut
hit | hit
hurt | hurt
cost | cost
set | set
let | let
play | played
walk | walked
talk | talked
work | worked
look | looked
ask | asked
help | helped
jump | jumped
open | opened
close | closed
love | loved
like | liked
live | lived
move | moved
smile | smiled
dance | danced
bake | baked
laugh | laughed
cook | cooked
wash | washed
watch | watched
clean | cleaned
paint | painted
count | counted
want | wanted
need | needed
start | started
visit | visited
wait | waited
carry | carried
cry | cried
try | tried
study | studied
marry | married
hurry | hurried
stop | stopped
plan | planned
drop | dropped
hug | hugged
clap | clapped
travel | travelled
enjoy | enjoyed
stay | stayed
answer | answered
listen | listened
learn | learned
call | called
rain | rained
snow | snowed
"""

# adjective | comparative
COMPARATIVES = """
big | bigger
small | smaller
tall | taller
short | shorter
fast | faster
slow | slower
hot | hotter
cold | colder
old | older
young | younger
new | newer
good | better
bad | worse
far | farther
rich | richer
poor | poorer
strong | stronger
weak | weaker
wet | wetter
dry | drier
clean | cleaner
dirty | dirtier
early | earlier
late | later
easy | easier
hard | harder
soft | softer
loud | louder
quiet | quieter
high | higher
low | lower
thick | thicker
thin | thinner
wide | wider
narrow | narrower
deep | deeper
long | longer
light | lighter
heavy | heavier
dark | darker
cheap | cheaper
safe | safer
happy | happier
sad | sadder
angry | angrier
funny | funnier
lucky | luckier
lazy | lazier
busy | busier
pretty | prettier
ugly | uglier
kind | kinder
nice | nicer
brave | braver
wise | wiser
large | larger
great | greater
sharp | sharper
smooth | smoother
rough | rougher
sweet | sweeter
warm | warmer
cool | cooler
near | nearer
flat | flatter
fat | fatter
"""

# ---------------------------------------------------------------------------------------------------- tables: French

# English | French; one answer in both directions
FRENCH = """
house | maison
dog | chien
cat | chat
horse | cheval
cow | vache
pig | cochon
sheep | mouton
goat | chèvre
chicken | poulet
duck | canard
rabbit | lapin
mouse | souris
bird | oiseau
fish | poisson
lion | lion
bear | ours
wolf | loup
fox | renard
monkey | singe
elephant | éléphant
snake | serpent
frog | grenouille
bee | abeille
butterfly | papillon
ant | fourmi
spider | araignée
fly | mouche
tree | arbre
flower | fleur
leaf | feuille
grass | herbe
forest | forêt
mountain | montagne
river | rivière
lake | lac
sea | mer
island | île
beach | plage
sand | sable
stone | pierre
sky | ciel
sun | soleil
moon | lune
star | étoile
earth | terre
fire | feu
water | eau
air | air
wind | vent
rain | pluie
snow | neige
ice | glace
cloud | nuage
storm | orage
man | homme
woman | femme
child | enfant
boy | garçon
girl | fille
baby | bébé
father | père
mother | mère
brother | frère
sister | sœur
uncle | oncle
aunt | tante
grandfather | grand-père
grandmother | grand-mère
friend | ami
neighbour | voisin
king | roi
queen | reine
prince | prince
doctor | médecin
teacher | professeur
pupil | élève
baker | boulanger
butcher | boucher
farmer | fermier
soldier | soldat
head | tête
hair | cheveux
eye | œil
ear | oreille
nose | nez
mouth | bouche
tooth | dent
tongue | langue
neck | cou
shoulder | épaule
arm | bras
hand | main
finger | doigt
back | dos
heart | cœur
leg | jambe
knee | genou
foot | pied
skin | peau
bone | os
blood | sang
bread | pain
butter | beurre
cheese | fromage
milk | lait
egg | œuf
meat | viande
soup | soupe
salt | sel
pepper | poivre
sugar | sucre
honey | miel
jam | confiture
cake | gâteau
chocolate | chocolat
coffee | café
tea | thé
wine | vin
beer | bière
juice | jus
apple | pomme
pear | poire
lemon | citron
cherry | cerise
strawberry | fraise
grape | raisin
peach | pêche
potato | pomme de terre
tomato | tomate
carrot | carotte
onion | oignon
garlic | ail
cabbage | chou
bean | haricot
rice | riz
table | table
chair | chaise
bed | lit
door | porte
window | fenêtre
wall | mur
roof | toit
floor | plancher
room | chambre
kitchen | cuisine
garden | jardin
key | clé
lamp | lampe
mirror | miroir
clock | horloge
cup | tasse
glass | verre
plate | assiette
knife | couteau
fork | fourchette
spoon | cuillère
bottle | bouteille
box | boîte
bag | sac
basket | panier
book | livre
page | page
letter | lettre
word | mot
pencil | crayon
pen | stylo
paper | papier
newspaper | journal
school | école
church | église
shop | magasin
market | marché
station | gare
street | rue
bridge | pont
city | ville
village | village
castle | château
town hall | mairie
hospital | hôpital
library | bibliothèque
car | voiture
train | train
bus | autobus
bicycle | vélo
boat | bateau
plane | avion
road | route
ticket | billet
money | argent
shirt | chemise
trousers | pantalon
dress | robe
skirt | jupe
shoe | chaussure
sock | chaussette
hat | chapeau
coat | manteau
glove | gant
scarf | écharpe
umbrella | parapluie
ring | bague
gold | or
iron | fer
wood | bois
wool | laine
red | rouge
blue | bleu
green | vert
yellow | jaune
white | blanc
black | noir
grey | gris
brown | brun
pink | rose
one | un
two | deux
three | trois
four | quatre
five | cinq
six | six
seven | sept
eight | huit
nine | neuf
ten | dix
eleven | onze
twelve | douze
twenty | vingt
hundred | cent
thousand | mille
Monday | lundi
Tuesday | mardi
Wednesday | mercredi
Thursday | jeudi
Friday | vendredi
Saturday | samedi
Sunday | dimanche
January | janvier
February | février
March | mars
April | avril
May | mai
June | juin
July | juillet
August | août
September | septembre
October | octobre
November | novembre
December | décembre
spring | printemps
summer | été
autumn | automne
winter | hiver
day | jour
night | nuit
morning | matin
evening | soir
week | semaine
month | mois
year | an
hour | heure
today | aujourd'hui
yesterday | hier
tomorrow | demain
now | maintenant
always | toujours
never | jamais
often | souvent
here | ici
big | grand
small | petit
good | bon
bad | mauvais
beautiful | beau
ugly | laid
young | jeune
old | vieux
new | nouveau
hot | chaud
cold | froid
long | long
short | court
high | haut
low | bas
heavy | lourd
light | léger
strong | fort
weak | faible
rich | riche
poor | pauvre
happy | heureux
sad | triste
tired | fatigué
sick | malade
easy | facile
difficult | difficile
clean | propre
dirty | sale
full | plein
empty | vide
open | ouvert
closed | fermé
slow | lent
fast | rapide
sweet | sucré
thick | épais
wide | large
deep | profond
dead | mort
true | vrai
false | faux
to eat | manger
to drink | boire
to sleep | dormir
to speak | parler
to read | lire
to write | écrire
to sing | chanter
to dance | danser
to run | courir
to walk | marcher
to swim | nager
to jump | sauter
to play | jouer
to work | travailler
to buy | acheter
to sell | vendre
to give | donner
to take | prendre
to see | voir
to hear | entendre
to love | aimer
to live | vivre
to die | mourir
to think | penser
to believe | croire
to open | ouvrir
to close | fermer
to find | trouver
to lose | perdre
to search | chercher
to wait | attendre
to come | venir
to go | aller
to fall | tomber
to laugh | rire
to cry | pleurer
to learn | apprendre
to count | compter
to pay | payer
to help | aider
to answer | répondre
to cook | cuisiner
to wash | laver
to travel | voyager
world | monde
life | vie
war | guerre
peace | paix
dream | rêve
game | jeu
song | chanson
colour | couleur
name | nom
number | nombre
question | question
god | dieu
luck | chance
truth | vérité
health | santé
hunger | faim
thirst | soif
fear | peur
and | et
or | ou
but | mais
with | avec
without | sans
under | sous
on | sur
behind | derrière
before | avant
after | après
yes | oui
no | non
hello | bonjour
goodbye | au revoir
please | s'il vous plaît
thank you | merci
good night | bonne nuit
"""

# ----------------------------------------------------------------------------------------- tables: calendar, numbers


def words(text: str) -> list[str]:
    """A short table of single words."""
    return text.split()


DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
ORDINALS = words("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
SMALL_NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = words("- - twenty thirty forty fifty sixty seventy eighty ninety")

# ----------------------------------------------------------------------------------------- tables: stories, reviews

NAMES = words(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor Wendy Adam "
    "Bella Carl Dora Eric Fiona George Helen Ivan Julia Kevin Laura Martin Nina Oscar Peter Ruth Simon Thea Umar Vera "
    "Walter Alice Bruno Celia Daniel Eva Frank Gina Hugo Iris"
)

# the simple past | the plain form | the participle
ACTIONS = """
found | find | found
lost | lose | lost
bought | buy | bought
sold | sell | sold
painted | paint | painted
broke | break | broken
repaired | repair | repaired
hid | hide | hidden
dropped | drop | dropped
cleaned | clean | cleaned
drew | draw | drawn
carried | carry | carried
forgot | forget | forgotten
saw | see | seen
opened | open | opened
showed | show | shown
"""

OBJECTS = """
a key
a red ball
an old map
a silver coin
a book
a kite
a small box
a letter
a lamp
a drum
a blue hat
a clock
a basket
a guitar
a wooden boat
a ring
a bag
an umbrella
a photo
a camera
a bicycle
a green scarf
a mirror
a bell
a toy train
a vase
a notebook
a watch
a suitcase
a cake
a chair
a flute
a ladder
a yellow bucket
a picture
an empty bottle
"""

PLACES = """
in the garden
in the park
at the station
at the market
on the beach
in the library
at school
in the kitchen
in the forest
on the bridge
at the harbour
in the museum
in the village
on the farm
in the cellar
at the airport
in the theatre
by the river
by the lake
near the church
in the old tower
in the classroom
at the bakery
on the train
in the hotel
in the attic
behind the house
under the big tree
in the castle
at the zoo
"""

TIMES = """
on Monday
on Tuesday
on Wednesday
on Thursday
on Friday
on Saturday
on Sunday
in the morning
in the evening
in the afternoon
at noon
at midnight
in January
in February
in March
in April
in May
in June
in July
in August
in September
in October
in November
in December
in spring
in summer
in autumn
in winter
last week
yesterday
before breakfast
after lunch
after dinner
after school
before sunrise
"""

# filler sentences of a story: they hold nothing that is asked for
FILLERS = """
The weather was fine.
It was raining a little.
The sky was grey.
A dog was barking far away.
Nobody else was there.
Many people were there.
The wind was cold.
The birds were singing.
It was very quiet.
Everybody was in a good mood.
It took a long time.
It did not take long.
Nobody had expected that.
A neighbour helped a little.
Then it was time to go home.
That was a good day.
It was a surprise for the whole family.
The sun was shining.
Some children were playing nearby.
Music came from a window.
"I don't know how that happened," said a neighbour.
"Hello, nice to see you!" said an old friend.
"I'm sorry, I can't help with that," said a man in a hurry.
"Thank you very much!" said somebody.
"""

# thing reviewed | what is good about it | what is bad about it
REVIEWED = """
film | The story was exciting from start to finish. | The story was boring from start to finish.
film | The actors were brilliant. | The actors were dreadful.
film | I laughed the whole evening. | I fell asleep after ten minutes.
book | I could not put it down. | I gave up after twenty pages.
book | The characters feel alive. | The characters feel like cardboard.
book | Every chapter is a pleasure. | Every chapter is a pain.
restaurant | The food was delicious. | The food was cold and tasteless.
restaurant | The waiter was friendly and quick. | The waiter was rude and slow.
restaurant | The soup was the best of my life. | There was a hair in my soup.
hotel | The room was clean and quiet. | The room was dirty and loud.
hotel | The bed was wonderfully soft. | The bed was as hard as a board.
hotel | Breakfast was excellent. | Breakfast was a disappointment.
phone | The battery lasts for days. | The battery dies after an hour.
phone | The screen is bright and sharp. | The screen broke on the first day.
phone | It works perfectly. | It stopped working after a week.
game | We played it all night with great joy. | We were bored after five minutes.
game | The rules are simple and clever. | The rules are confusing and dull.
concert | The band was fantastic. | The band was out of tune.
concert | The sound was clear and warm. | The sound was awful.
bicycle | It rides smoothly and looks great. | It rattles and the brakes fail.
coffee machine | The coffee tastes wonderful. | The coffee tastes burnt.
coffee machine | It is easy to clean. | It leaks all over the kitchen.
jacket | It is warm and fits perfectly. | It is thin and the zip broke at once.
pair of shoes | They are light and comfortable. | They hurt my feet.
taxi ride | The driver was kind and careful. | The driver was reckless and unfriendly.
museum | The exhibition was fascinating. | The exhibition was tiny and overpriced.
"""

PRAISE = """
I love it.
I am very happy with it.
Highly recommended!
It was worth every penny.
I would buy it again at once.
What a wonderful surprise.
Simply great.
A real pleasure.
Five stars from me.
I enjoyed every minute.
The best choice I made this year.
It made my day.
Everything was perfect.
I will certainly come back.
Excellent in every way.
"""

BLAME = """
I hate it.
I am very unhappy with it.
Not recommended at all.
It was a waste of money.
I want my money back.
What a terrible disappointment.
Simply awful.
A real nuisance.
One star is too many.
I regretted every minute.
The worst choice I made this year.
It ruined my day.
Nothing worked.
I will never come back.
Horrible in every way.
"""

# what one says | the occasion: a phrase book, which lets the base meet the words of small talk
PHRASES = """
Hello! | a greeting
Hello! Nice to meet you. | a greeting to a stranger
Good morning! | a greeting before noon
Good evening! | a greeting after sunset
Goodbye! | a farewell
See you soon! | a farewell among friends
Good night! | a farewell at bedtime
Thank you! | thanks
You're welcome! | a reply to thanks
I don't know. | words of somebody who has no answer
I don't know. | an honest reply about a thing nobody has heard of
I'm sorry, I can't help with that. | a polite refusal
I'm sorry, I can't help with that. | words of a shop that must turn a customer away
I'm fine, thank you. | a reply about one's health
I am a small language model. | words of a computer program about itself
My name is Tiny. | a small computer program giving its name
Happy birthday! | a wish on a birthday
Good luck! | a wish before an exam
Get well soon! | a wish for a sick friend
"""

# --------------------------------------------------------------------------------------------------- reading a table


def table(text: str) -> list[tuple[str, ...]]:
    """Rows of a table above: one a line, cells separated by ` | `."""
    return [tuple(cell.strip() for cell in line.split("|")) for line in text.strip().splitlines()]


def bare(name: str) -> str:
    """A name without its article: `the Netherlands` -> `Netherlands`, `a banana` -> `banana`."""
    return re.sub(r"^(the|a|an) ", "", name)


def definite(thing: str) -> str:
    """`a key` -> `the key`."""
    return "the " + bare(thing)


def upper(text: str) -> str:
    """The text as it stands at the beginning of a sentence: only the first letter changes."""
    return text[:1].upper() + text[1:]


def number_word(n: int) -> str:
    """0 ... 100 in words: `forty-six`."""
    if n == 100:
        return "one hundred"
    if n < 20:
        return SMALL_NUMBERS[n]
    return TENS[n // 10] + ("-" + SMALL_NUMBERS[n % 10] if n % 10 else "")


def plural(noun: str) -> str:
    """Plural of an animal's name; the table of plurals knows the irregular ones."""
    head, _, last = noun.rpartition(" ")
    known = dict(table(PLURALS)).get(last)
    if known is None:
        if re.search(r"(s|x|ch|sh)$", last):
            known = last + "es"
        elif re.search(r"[^aeiou]y$", last):
            known = last[:-1] + "ies"
        else:
            known = last + "s"
    irregular = {"buffalo": "buffaloes", "cod": "cod", "bison": "bison", "octopus": "octopuses"} | {
        name: name for name in ("elk", "moose", "goldfish", "trout", "herring", "pike", "shrimp", "reindeer")
    }
    return f"{head} {irregular.get(last, known)}".strip()


def with_article(noun: str) -> str:
    """`cow` -> `a cow`, `owl` -> `an owl`."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


ON_THE = {"grassland", "savanna", "prairie", "tundra", "farm", "cliff", "sea cliff"}


def home_phrase(home: str) -> str:
    """Where one finds an animal, with its preposition: `on the savanna`."""
    if home == "seashore":
        return "at the seashore"
    return ("on the " if home in ON_THE else "in the ") + home


# ------------------------------------------------------------------------------------------------------- relations


@dataclass(frozen=True)
class Fact:
    """One true statement: `subject` has `value`.  `fields` are what templates may mention.

    s: subject in running text, S: at a sentence's start, n: bare subject, N: bare at a line's start, v: value,
    V: value at a sentence's start, and for animals a/A: with article, p/P: plural; h: a home with its preposition.
    """

    subject: str
    value: str

    @cached_property
    def fields(self) -> dict[str, str]:
        s, v, n = self.subject, self.value, bare(self.subject)
        fields = {"s": s, "S": upper(s), "n": n, "N": upper(n), "v": v, "V": upper(v)}
        fields |= {"a": with_article(n), "p": plural(n), "h": home_phrase(v), "av": with_article(v)}
        return fields | {"A": upper(fields["a"]), "P": upper(fields["p"])}


@dataclass(frozen=True)
class Relation:
    """A kind of fact and its wordings.

    running: sentences; the value may stand anywhere, also first.
    keys: noun phrases, or headings like `what lions eat`, after which the value stands on a line of its own.
    back_keys: the same from the value to the subject; used only where the value belongs to one subject.
    exam: questions and tasks for exam sheets, which are never answered.
    """

    name: str
    group: str
    title: str
    json_keys: tuple[str, str]
    facts: tuple[Fact, ...]
    keys: tuple[str, ...]
    running: tuple[str, ...]
    exam: tuple[str, ...]
    back_keys: tuple[str, ...] = ()

    @cached_property
    def unique_values(self) -> frozenset[str]:
        """Values that belong to one subject only."""
        return frozenset(value for value, n in Counter(fact.value for fact in self.facts).items() if n == 1)


def column(text: str, subject: int, value: int) -> tuple[Fact, ...]:
    """Facts from two columns of a table; `-` cells are left out."""
    return tuple(Fact(row[subject], row[value]) for row in table(text) if "-" not in (row[subject], row[value]))


def both_ways(text: str) -> tuple[Fact, ...]:
    """Facts of a symmetric table: each word of a row is the value of the other."""
    return column(text, 0, 1) + column(text, 1, 0)


def steps(items: Sequence[str], by: int) -> tuple[Fact, ...]:
    """Neighbours in a circle (days, months): each item and the one `by` places on."""
    return tuple(Fact(item, items[(i + by) % len(items)]) for i, item in enumerate(items))


CAPITAL = Relation(
    "capital",
    "country",
    "Countries and their capitals",
    ("country", "capital"),
    column(COUNTRIES, 0, 1),
    keys=(
        "capital of {s}",
        "the capital of {s}",
        "{n}, capital",
        "capital city of {s}",
        "{n}: capital city",
        "the capital city of {s}",
        "name of the capital of {s}",
        "capital ({n})",
        "{n} - capital",
        "city that is the capital of {s}",
        "what the capital of {s} is called",
        "the city which {s} has as its capital",
        "in {s}, the capital is",
        "capital, {n}",
    ),
    running=(
        "The capital of {s} is {v}.",
        "{v} is the capital of {s}.",
        "{S} has the capital {v}.",
        "The capital city of {s} is {v}.",
        "{v} is the capital city of {s}.",
        "{S}: the capital is {v}.",
        "In {s} the capital is called {v}.",
        "The country whose capital is {v} is {s}.",
        "{v}, the capital of {s}, is on every map.",
        "As its capital {s} has {v}.",
        "{n} (capital: {v})",
        "{v} belongs to {s}, whose capital it is.",
        "One travels to {v} to see the capital of {s}.",
        "The country with the capital {v} is {s}.",
    ),
    exam=(
        "What is the capital of {s}?",
        "Which city is the capital of {s}?",
        "Name the capital of {s}.",
        "Write down the capital city of {s}.",
        "What is the capital city of {s} called?",
        "Of which country is {v} the capital?",
        "Which country has the capital {v}?",
    ),
    back_keys=(
        "country whose capital is {v}",
        "country with the capital {v}",
        "the country of which {v} is the capital",
        "{v} is the capital of",
        "{v}, capital of",
        "the country that has {v} as its capital",
        "{v}: country",
        "country to which the capital {v} belongs",
    ),
)

CONTINENT = Relation(
    "continent",
    "country",
    "Countries and their continents",
    ("country", "continent"),
    column(COUNTRIES, 0, 2),
    keys=(
        "continent of {s}",
        "the continent of {s}",
        "{n}, continent",
        "{n}: continent",
        "continent on which {s} lies",
        "the continent to which {s} belongs",
        "the part of the world in which {s} lies",
        "continent ({n})",
        "{n} - continent",
        "where {s} lies, by continent",
        "name of the continent of {s}",
        "home continent of {s}",
        "where in the world {s} is found",
    ),
    running=(
        "{S} lies in {v}.",
        "{S} is a country in {v}.",
        "{v} is the continent of {s}.",
        "{S} belongs to {v}.",
        "The continent of {s} is {v}.",
        "In {v} lies {s}.",
        "One of the countries of {v} is {s}.",
        "On the map of {v} one finds {s}.",
        "{v} is where {s} lies.",
        "{n} (continent: {v})",
        "Among the countries of {v} is {s}.",
        "The continent to which {s} belongs is {v}.",
    ),
    exam=(
        "On which continent does {s} lie?",
        "What continent is {s} in?",
        "Name the continent of {s}.",
        "To which continent does {s} belong?",
        "Where in the world is {s}?",
    ),
)

LANGUAGE = Relation(
    "language",
    "country",
    "Countries and their languages",
    ("country", "language"),
    column(COUNTRIES, 0, 3),
    keys=(
        "language of {s}",
        "the language of {s}",
        "{n}, language",
        "{n}: main language",
        "main language of {s}",
        "the main language of {s}",
        "language spoken in {s}",
        "the language that people speak in {s}",
        "language ({n})",
        "{n} - language",
        "what people speak in {s}",
        "what is spoken in {s}",
        "most important language in {s}",
        "name of the main language of {s}",
    ),
    running=(
        "People in {s} speak {v}.",
        "The main language of {s} is {v}.",
        "{v} is the main language of {s}.",
        "{v} is spoken in {s}.",
        "In {s} people speak {v}.",
        "The language of {s} is {v}.",
        "One speaks {v} in {s}.",
        "{S} has {v} as its main language.",
        "{n} (language: {v})",
        "A traveller who speaks {v} is understood in {s}.",
        "{v} is heard in the streets of {s}.",
        "Newspapers in {s} are printed in {v}.",
    ),
    exam=(
        "Which language is spoken in {s}?",
        "What language do people speak in {s}?",
        "Name the main language of {s}.",
        "What is the main language of {s}?",
        "What do people in {s} speak?",
    ),
    back_keys=(
        "country whose main language is {v}",
        "country where people speak {v}",
        "{v} is the main language of",
        "the country of the language {v}",
        "country with the language {v}",
    ),
)

CURRENCY = Relation(
    "currency",
    "country",
    "Countries and their currencies",
    ("country", "currency"),
    column(COUNTRIES, 0, 4),
    keys=(
        "currency of {s}",
        "the currency of {s}",
        "{n}, currency",
        "{n}: currency",
        "the currency used in {s}",
        "money of {s}",
        "the money used in {s}",
        "currency ({n})",
        "{n} - money",
        "what people pay with in {s}",
        "name of the currency of {s}",
        "the money with which one pays in {s}",
        "currency in {s}",
        "money that people use in {s}",
    ),
    running=(
        "The currency of {s} is the {v}.",
        "People in {s} pay with the {v}.",
        "{S} uses the {v}.",
        "The {v} is the currency of {s}.",
        "In {s} one pays with the {v}.",
        "The money of {s} is the {v}.",
        "{n} (currency: {v})",
        "Prices in {s} are given in the {v}.",
        "{V}: this is the currency of {s}.",
        "{V} is the name of the money used in {s}.",
        "In the shops of {s} the {v} is used.",
        "The {v} is used in {s}.",
    ),
    exam=(
        "What is the currency of {s}?",
        "Which currency is used in {s}?",
        "Name the currency of {s}.",
        "What money do people use in {s}?",
        "What do people pay with in {s}?",
    ),
    back_keys=(
        "country that pays with the {v}",
        "country whose currency is the {v}",
        "the country of the {v}",
        "country where the {v} is used",
        "{v} is the currency of",
    ),
)

SYMBOL = Relation(
    "symbol",
    "element",
    "Elements and their symbols",
    ("element", "symbol"),
    column(ELEMENTS, 0, 1),
    keys=(
        "symbol of {s}",
        "the symbol of {s}",
        "{n}, symbol",
        "{N}: symbol",
        "chemical symbol of {s}",
        "the chemical symbol for {s}",
        "symbol for {s}",
        "symbol ({n})",
        "{n} - symbol",
        "how chemists write {s}",
        "sign of {s} in the periodic table",
        "the letters that stand for {s}",
        "abbreviation of {s}",
    ),
    running=(
        "The symbol of {s} is {v}.",
        "{v} is the symbol of {s}.",
        "{S} has the symbol {v}.",
        "Chemists write {v} for {s}.",
        "{v} stands for {s}.",
        "The chemical symbol for {s} is {v}.",
        "{S} is written {v}.",
        "The element with the symbol {v} is {s}.",
        "{n} (symbol: {v})",
        "In the periodic table {v} means {s}.",
        "With {v} one means the element {s}.",
        "{v} is short for {s}.",
    ),
    exam=(
        "What is the symbol of {s}?",
        "What is the chemical symbol for {s}?",
        "Name the symbol of {s}.",
        "How do chemists write {s}?",
        "Which element has the symbol {v}?",
        "What does the symbol {v} stand for?",
    ),
    back_keys=(
        "element with the symbol {v}",
        "the element with the symbol {v}",
        "{v} stands for",
        "what the symbol {v} means",
        "symbol {v}, element",
        "name of the element {v}",
        "the element written {v}",
        "{v}: element",
        "chemical symbol {v}, meaning",
    ),
)

NUMBER = Relation(
    "number",
    "element",
    "Elements and their atomic numbers",
    ("element", "number"),
    tuple(Fact(row[0], str(i)) for i, row in enumerate(table(ELEMENTS), 1)),
    keys=(
        "atomic number of {s}",
        "the atomic number of {s}",
        "{n}, atomic number",
        "{N}: atomic number",
        "number of {s} in the periodic table",
        "the number of protons in {s}",
        "atomic number ({n})",
        "{n} - number",
        "the number of {s}",
        "place of {s} in the periodic table",
        "how many protons an atom of {s} has",
        "protons in an atom of {s}",
    ),
    running=(
        "The atomic number of {s} is {v}.",
        "{v} is the atomic number of {s}.",
        "{S} has the atomic number {v}.",
        "{S} is element number {v}.",
        "Element {v} is {s}.",
        "An atom of {s} has {v} protons.",
        "{n} (atomic number: {v})",
        "The element with the atomic number {v} is {s}.",
        "{v} protons make an atom of {s}.",
        "Number {v} in the periodic table is {s}.",
        "In the periodic table {s} has the number {v}.",
    ),
    exam=(
        "What is the atomic number of {s}?",
        "How many protons does {s} have?",
        "Which atomic number does {s} have?",
        "Which element has the atomic number {v}?",
        "Name the element with number {v}.",
    ),
    back_keys=(
        "element with the atomic number {v}",
        "the element with the atomic number {v}",
        "element number {v}",
        "the element number {v}",
        "atomic number {v}, element",
        "number {v} in the periodic table",
        "the element with {v} protons",
        "name of element {v}",
    ),
)

ANIMAL_CLASS = Relation(
    "animal class",
    "animal",
    "Animals and their classes",
    ("animal", "class"),
    column(ANIMALS, 0, 1),
    keys=(
        "class of the {n}",
        "the class of the {n}",
        "{n}, class",
        "{N}: class of animal",
        "the class to which the {n} belongs",
        "kind of animal: {n}",
        "what kind of animal {a} is",
        "class ({n})",
        "{n} - class",
        "the {n} is this kind of animal",
        "animal class of the {n}",
        "group of animals to which {p} belong",
    ),
    running=(
        "{A} is {av}.",
        "The {n} is {av}.",
        "{P} belong to this class: {v}.",
        "The class of the {n} is {v}.",
        "{V} is the class of the {n}.",
        "One {v} is the {n}.",
        "{n} (class: {v})",
        "{V}: the {n} is one.",
        "As {av}, the {n} has its place in the zoology book.",
        "In the book of animals the {n} stands under {v}.",
        "An example of {av} is the {n}.",
    ),
    exam=(
        "What kind of animal is {a}?",
        "To which class does the {n} belong?",
        "Name the class of the {n}.",
        "Which class of animal is the {n}?",
        "What class of animal is {a}?",
    ),
)

YOUNG = Relation(
    "young",
    "animal",
    "Animals and their young",
    ("animal", "young"),
    column(ANIMALS, 0, 2),
    keys=(
        "young of the {n}",
        "the young of the {n}",
        "{n}, young",
        "{N}: young",
        "young {n}",
        "baby {n}",
        "name for a young {n}",
        "name of a baby {n}",
        "what a young {n} is called",
        "what a baby {n} is called",
        "young ({n})",
        "{n} - young",
        "the word for a baby {n}",
        "child of {a}",
    ),
    running=(
        "A young {n} is called {av}.",
        "A baby {n} is {av}.",
        "The young of the {n} is {av}.",
        "{V} is the word for a young {n}.",
        "{V} is the name of a baby {n}.",
        "{A} was {av} when it was young.",
        "The young of {p} are known by the word {v}.",
        "{n} (young: {v})",
        "{V}: so one calls a young {n}.",
        "From {av} grows {a}.",
        "The word {v} means a young {n}.",
    ),
    exam=(
        "What is a young {n} called?",
        "What is a baby {n} called?",
        "What do you call a young {n}?",
        "Name the young of the {n}.",
        "What is the word for a baby {n}?",
    ),
    back_keys=(
        "animal whose young is {av}",
        "{av} grows up to be this animal",
        "animal with the young called {v}",
        "parent of {av}",
    ),
)

SOUND = Relation(
    "sound",
    "animal",
    "Animals and their sounds",
    ("animal", "sound"),
    column(ANIMALS, 0, 3),
    keys=(
        "sound of the {n}",
        "the sound of the {n}",
        "{n}, sound",
        "{N}: sound",
        "sound that {a} makes",
        "the sound {a} makes",
        "the noise {a} makes",
        "voice of the {n}",
        "what {p} sound like",
        "sound ({n})",
        "{n} - noise",
        "name of the sound of {p}",
        "cry of the {n}",
    ),
    running=(
        "The sound of the {n} is called {v}.",
        "The sound {a} makes is {v}.",
        "{V} is the sound of the {n}.",
        "{V}: that is what one hears from {a}.",
        "The voice of {p} is described by the word {v}.",
        "{P} make this sound: {v}.",
        "{n} (sound: {v})",
        "With the word {v} one names the sound of the {n}.",
        "The noise {a} makes is called {v}.",
        "{V} is the noise that {p} make.",
        "From {a} one hears this: {v}.",
    ),
    exam=(
        "What sound does {a} make?",
        "Which sound do {p} make?",
        "What noise does {a} make?",
        "Name the sound of the {n}.",
        "What does {a} sound like?",
    ),
    back_keys=(
        "animal with this sound: {v}",
        "animal whose sound is called {v}",
        "the animal one hears by the sound {v}",
    ),
)

HOME = Relation(
    "home",
    "animal",
    "Animals and their homes",
    ("animal", "home"),
    column(ANIMALS, 0, 4),
    keys=(
        "home of the {n}",
        "the home of the {n}",
        "{n}, home",
        "{N}: home",
        "place where {a} lives",
        "the place where {p} live",
        "where {p} live",
        "where {a} lives",
        "home ({n})",
        "{n} - home",
        "dwelling of the {n}",
        "living place of {p}",
        "where one finds {a}",
    ),
    running=(
        "{P} live {h}.",
        "{A} lives {h}.",
        "The home of the {n} is the {v}.",
        "The {v} is the home of the {n}.",
        "{V} is the home of {p}.",
        "One finds the {n} {h}.",
        "{n} (home: {v})",
        "{V}: here lives the {n}.",
        "The place where {p} live is the {v}.",
        "Somebody who looks for {a} finds it {h}.",
        "At home {h}: the {n}.",
    ),
    exam=(
        "Where does {a} live?",
        "Where do {p} live?",
        "What is the home of {a}?",
        "Name the home of the {n}.",
        "In what place does {a} live?",
    ),
    back_keys=("animal that lives {h}", "animal at home {h}", "the animal whose home is the {v}"),
)

DIET = Relation(
    "diet",
    "animal",
    "Animals and their food",
    ("animal", "food"),
    column(ANIMALS, 0, 5),
    keys=(
        "food of the {n}",
        "the food of the {n}",
        "{n}, food",
        "{N}: food",
        "main food of the {n}",
        "what {p} eat",
        "what {a} eats",
        "diet of the {n}",
        "food ({n})",
        "{n} - diet",
        "favourite food of {p}",
        "the food that {a} eats",
        "menu of the {n}",
    ),
    running=(
        "{P} eat {v}.",
        "{A} eats {v}.",
        "The food of the {n} is {v}.",
        "{V} is the main food of the {n}.",
        "{V}: that is what {p} eat.",
        "{P} live on {v}.",
        "{n} (food: {v})",
        "The main food of {p} is {v}.",
        "For {p} there is {v} to eat.",
        "With {v} one feeds {a}.",
        "The diet of the {n} is mostly {v}.",
    ),
    exam=(
        "What does {a} eat?",
        "What do {p} eat?",
        "What is the main food of the {n}?",
        "Name the food of the {n}.",
        "Which food does {a} eat?",
    ),
    back_keys=("animal that eats {v}", "animal that lives on {v}", "eater of {v}"),
)

COLOUR = Relation(
    "colour",
    "thing",
    "Things and their colours",
    ("thing", "colour"),
    column(COLOURS, 0, 1),
    keys=(
        "colour of {s}",
        "the colour of {s}",
        "{n}, colour",
        "{N}: colour",
        "colour that {s} has",
        "usual colour of {s}",
        "colour ({n})",
        "{n} - colour",
        "what colour {s} has",
        "in the paint box, the colour for {s}",
        "the colour for painting {s}",
    ),
    running=(
        "{S} is {v}.",
        "The colour of {s} is {v}.",
        "{V} is the colour of {s}.",
        "{S} has the colour {v}.",
        "One paints {s} in {v}.",
        "{V}: the colour of {s}.",
        "Usually {s} is {v}.",
        "{n} (colour: {v})",
        "As everybody can see, {s} is {v}.",
        "With {v} paint one draws {s}.",
        "{V} like {s}, people say.",
    ),
    exam=(
        "What colour is {s}?",
        "What is the colour of {s}?",
        "Which colour does {s} have?",
        "Name the colour of {s}.",
    ),
)

SHAPE = Relation(
    "shape",
    "thing",
    "Things and their shapes",
    ("thing", "shape"),
    column(SHAPES, 0, 1),
    keys=(
        "shape of {s}",
        "the shape of {s}",
        "{n}, shape",
        "{N}: shape",
        "shape that {s} has",
        "form of {s}",
        "shape ({n})",
        "{n} - shape",
        "what shape {s} has",
        "in geometry, the shape of {s}",
        "the figure for drawing {s}",
    ),
    running=(
        "{S} has the shape of {av}.",
        "The shape of {s} is {av}.",
        "{V} is the shape of {s}.",
        "In shape {s} is {av}.",
        "{V}: the shape of {s}.",
        "One draws {s} as {av}.",
        "{n} (shape: {v})",
        "The form of {s} is {av}.",
        "Seen from its shape, {s} is {av}.",
        "{S} is an example of the shape called {v}.",
    ),
    exam=(
        "What shape is {s}?",
        "What shape does {s} have?",
        "Name the shape of {s}.",
        "Which shape is {s}?",
    ),
)

OPPOSITE = Relation(
    "opposite",
    "word",
    "Words and their opposites",
    ("word", "opposite"),
    both_ways(OPPOSITES),
    keys=(
        "opposite of {s}",
        "the opposite of {s}",
        "{n}, opposite",
        "{N}: opposite",
        "word that means the opposite of {s}",
        "opposite ({n})",
        "{n} - opposite",
        "the reverse of {s}",
        "antonym of {s}",
        "contrary of {s}",
        'the opposite of "{s}"',
        "opposite word of {s}",
        "not {s}, but",
    ),
    running=(
        "The opposite of {s} is {v}.",
        "{V} is the opposite of {s}.",
        "{S} is the opposite of {v}.",
        "{S} and {v} are opposites.",
        "Who does not say {s} says {v}.",
        "{s} (opposite: {v})",
        "{s} <> {v}",
        "The contrary of {s} is {v}.",
        'The word "{v}" means the reverse of "{s}".',
        "The antonym of {s} is {v}.",
        "Between {s} and {v} there is all the difference.",
        "{V}: the contrary of {s}.",
    ),
    exam=(
        "What is the opposite of {s}?",
        'What is the opposite of "{s}"?',
        "Write the opposite of {s}.",
        "Which word is the opposite of {s}?",
        "Give the antonym of {s}.",
    ),
)

SYNONYM = Relation(
    "synonym",
    "word",
    "Words of the same meaning",
    ("word", "synonym"),
    column(SYNONYMS, 0, 1),
    keys=(
        "synonym of {s}",
        "the synonym of {s}",
        "{n}, synonym",
        "{N}: synonym",
        "another word for {s}",
        "word with the same meaning as {s}",
        "a word that means the same as {s}",
        "synonym ({n})",
        "{n} - same meaning",
        "other word for {s}",
        'another word for "{s}"',
    ),
    running=(
        "Another word for {s} is {v}.",
        "{V} means the same as {s}.",
        "{S} means about the same as {v}.",
        "{V} is a synonym of {s}.",
        "A synonym of {s} is {v}.",
        "For {s} one can also say {v}.",
        "{s} (synonym: {v})",
        "{s} ~ {v}",
        "{S} and {v} are words of the same meaning.",
        "Instead of {s} some people say {v}.",
    ),
    exam=(
        "What is another word for {s}?",
        "Give a synonym of {s}.",
        "Which word means the same as {s}?",
        "Find a word with the same meaning as {s}.",
    ),
)

PLURAL = Relation(
    "plural",
    "word",
    "Nouns and their plurals",
    ("singular", "plural"),
    column(PLURALS, 0, 1),
    keys=(
        "plural of {s}",
        "the plural of {s}",
        "{n}, plural",
        "{N}: plural",
        "plural form of {s}",
        "plural ({n})",
        "{n} - plural",
        "more than one {s}",
        'the plural of "{s}"',
        "one {s}, two",
        "the plural form of the noun {s}",
        "several of the kind {s}",
    ),
    running=(
        "The plural of {s} is {v}.",
        "{V} is the plural of {s}.",
        "One {s}, two {v}.",
        "More than one {s}: {v}.",
        "The singular of {v} is {s}.",
        "{s} (plural: {v})",
        "{s}, {v}",
        "{V} is what one says of more than one {s}.",
        "The noun {s} has the plural {v}.",
        "{V}: plural form of {s}.",
        "First there was one {s}, then there were many {v}.",
    ),
    exam=(
        "What is the plural of {s}?",
        'What is the plural of "{s}"?',
        "Write the plural of {s}.",
        "Give the plural form of {s}.",
    ),
)

PAST = Relation(
    "past",
    "word",
    "Verbs and their past tense",
    ("verb", "past"),
    column(PASTS, 0, 1),
    keys=(
        "past tense of {s}",
        "the past tense of {s}",
        "{n}, past tense",
        "{N}: past",
        "past of {s}",
        "the past of {s}",
        "simple past of {s}",
        "past form of {s}",
        "past tense ({n})",
        "{n} - past tense",
        'the past tense of "{s}"',
        "past tense of the verb {s}",
        "today I {s}, yesterday I",
    ),
    running=(
        "The past tense of {s} is {v}.",
        "{V} is the past tense of {s}.",
        "Today I {s}, yesterday I {v}.",
        "The verb {s} has the past tense {v}.",
        "They {s} now; they {v} then.",
        "{s} (past: {v})",
        "{V} is the past of {s}.",
        "The past of {s} is {v}.",
        "{V}: past form of the verb {s}.",
        "Now we {s}, long ago we {v}.",
        "In the past tense {s} becomes {v}.",
    ),
    exam=(
        "What is the past tense of {s}?",
        'What is the past tense of "{s}"?',
        "Write the past tense of {s}.",
        "Put the verb {s} into the past.",
    ),
)

COMPARATIVE = Relation(
    "comparative",
    "word",
    "Adjectives and their comparatives",
    ("adjective", "comparative"),
    column(COMPARATIVES, 0, 1),
    keys=(
        "comparative of {s}",
        "the comparative of {s}",
        "{n}, comparative",
        "{N}: comparative",
        "comparative form of {s}",
        "comparative ({n})",
        "{n} - comparative",
        "more than {s}",
        'the comparative of "{s}"',
        "the comparative form of the adjective {s}",
        "one is {s}, the other is",
    ),
    running=(
        "The comparative of {s} is {v}.",
        "{V} is the comparative of {s}.",
        "This one is {s}, but that one is {v}.",
        "The adjective {s} has the comparative {v}.",
        "{s} (comparative: {v})",
        "{V} means more than {s}.",
        "More {s} means {v}.",
        "{V}: comparative form of {s}.",
        "Yesterday it was {s}, today it is even {v}.",
        "{s}, {v}",
    ),
    exam=(
        "What is the comparative of {s}?",
        "Write the comparative of {s}.",
        "Give the comparative form of {s}.",
    ),
)

TRANSLATION = Relation(
    "french",
    "french",
    "English and French words",
    ("english", "french"),
    column(FRENCH, 0, 1),
    keys=(
        "French for {s}",
        "the French for {s}",
        "{n}, in French",
        "{N}: French",
        "French word for {s}",
        "the French word for {s}",
        "{n} in French",
        "translation of {s} into French",
        "the French translation of {s}",
        "French ({n})",
        "English {n}, French",
        'the French word for "{s}"',
        "what the French say for {s}",
        "how one says {s} in French",
    ),
    running=(
        "{S} is {v} in French.",
        "In French {s} is {v}.",
        "The French word for {s} is {v}.",
        "{V} is French for {s}.",
        "{s} = {v}",
        "{v} = {s}",
        "{V} means {s} in English.",
        "The French say {v} for {s}.",
        'The French word "{v}" means {s}.',
        "English: {s}. French: {v}.",
        "French: {v}. English: {s}.",
        "Where the English say {s}, the French say {v}.",
    ),
    exam=(
        "What is the French word for {s}?",
        "How do you say {s} in French?",
        "Translate into French: {s}",
        'Translate "{s}" into French.',
        "What does the French word {v} mean?",
        "Translate into English: {v}",
    ),
    back_keys=(
        "English for {v}",
        "the English for {v}",
        "{v}, in English",
        "{v}: English",
        "English word for {v}",
        "the English word for {v}",
        "{v} in English",
        "translation of {v} into English",
        "the English translation of {v}",
        "meaning of the French word {v}",
        "French {v}, English",
        'the English word for "{v}"',
        "what {v} means in English",
    ),
)

NUMBER_WORD = Relation(
    "number word",
    "number",
    "Numbers in words",
    ("number", "word"),
    tuple(Fact(str(n), number_word(n)) for n in range(101)),
    keys=(
        "{s} in words",
        "the number {s} in words",
        "number word of {s}",
        "the number {s}, spelled out",
        "{s}, written as a word",
        "word for {s}",
        "the word for the number {s}",
        "{s} - word",
        "how one writes {s} in words",
        "{s} in letters",
    ),
    running=(
        "{s} in words is {v}.",
        "{V} is the word for {s}.",
        "The number {s} is written {v}.",
        "One writes {v} for {s}.",
        "{s} = {v}",
        "{v} = {s}",
        "{V} means {s}.",
        "{s} ({v})",
        "{V} ({s})",
        "The word {v} stands for the number {s}.",
    ),
    exam=("Write {s} in words.", "What is {s} in words?", "Write {v} in digits.", "Which number is {v}?"),
    back_keys=(
        "{v} in digits",
        "{v} in figures",
        "the number {v} in digits",
        "{v}, written in digits",
        "digits of {v}",
        "the figure for {v}",
        "{v} as a number",
        "{v}: number",
    ),
)

NUMBER_AFTER = Relation(
    "number after",
    "number",
    "Numbers and the next number",
    ("number", "next"),
    tuple(Fact(str(n), str(n + 1)) for n in range(100)),
    keys=(
        "number after {s}",
        "the number after {s}",
        "next number after {s}",
        "the number that comes after {s}",
        "{s}, next number",
        "number that follows {s}",
        "one more than {s}",
        "in counting, after {s}",
    ),
    running=(
        "After {s} comes {v}.",
        "{v} comes after {s}.",
        "The number after {s} is {v}.",
        "{v} follows {s}.",
        "{s}, {v}",
        "The next number after {s} is {v}.",
        "Before {v} comes {s}.",
        "One more than {s} is {v}.",
    ),
    exam=("Which number comes after {s}?", "What is the number after {s}?", "What is one more than {s}?"),
    back_keys=("number before {v}", "the number before {v}", "the number that comes before {v}", "one less than {v}"),
)

DOUBLE = Relation(
    "double",
    "number",
    "Numbers and their doubles",
    ("number", "double"),
    tuple(Fact(str(n), str(2 * n)) for n in range(1, 51)),
    keys=(
        "double of {s}",
        "the double of {s}",
        "twice {s}",
        "two times {s}",
        "{s} doubled",
        "{s}, double",
        "{s} taken twice",
        "2 x {s}",
    ),
    running=(
        "Twice {s} is {v}.",
        "{v} is the double of {s}.",
        "The double of {s} is {v}.",
        "Two times {s} is {v}.",
        "2 x {s} = {v}",
        "{v} is twice {s}.",
        "{s} + {s} = {v}",
        "Half of {v} is {s}.",
    ),
    exam=("What is the double of {s}?", "What is twice {s}?", "What is half of {v}?"),
    back_keys=("half of {v}", "the half of {v}", "one half of {v}", "{v}, half", "{v} divided by 2"),
)


def calendar_relation(
    name: str, title: str, word: str, after: bool, facts: tuple[Fact, ...], unit: str = ""
) -> Relation:
    """The item after or before another one in a fixed order; `unit` is `day`, `month` or `letter`."""
    side, comes, other = ("after", "follows", "before") if after else ("before", "comes before", "after")
    near = "next" if after else "previous"
    return Relation(
        name,
        "calendar",
        title,
        (word, near),
        facts,
        keys=(
            f"{word} {side} {{s}}",
            f"the {word} {side} {{s}}",
            f"{word} that {comes} {{s}}",
            f"the {word} that comes {side} {{s}}",
            f"{{s}}, {near} {word}",
            f"the {word} which stands {side} {{s}}",
            f"directly {side} {{s}}",
            f"what comes {side} {{s}}",
            f"the {near} {word} as seen from {{s}}",
        ),
        running=(
            f"The {word} {side} {{s}} is {{v}}.",
            f"{{v}} is the {word} {side} {{s}}.",
            f"{upper(side)} {{s}} comes {{v}}.",
            f"{{v}} comes {side} {{s}}.",
            f"{{s}} comes {other} {{v}}.",
            f"{{s}} is the {word} {other} {{v}}.",
            f"{{s}} ({near}: {{v}})",
            f"The {word} that comes {side} {{s}} is {{v}}.",
        ),
        exam=(
            f"Which {word} comes {side} {{s}}?",
            f"What {word} is {side} {{s}}?",
            f"Name the {word} {side} {{s}}.",
        ),
    )


DAY_AFTER = calendar_relation("day after", "Days and the next day", "day", True, steps(DAYS, 1))
DAY_BEFORE = calendar_relation("day before", "Days and the day before", "day", False, steps(DAYS, -1))
MONTH_AFTER = calendar_relation("month after", "Months and the next month", "month", True, steps(MONTHS, 1))
MONTH_BEFORE = calendar_relation("month before", "Months and the month before", "month", False, steps(MONTHS, -1))
LETTER_AFTER = calendar_relation("letter after", "Letters and the next letter", "letter", True, steps(LETTERS, 1)[:-1])
LETTER_BEFORE = calendar_relation(
    "letter before", "Letters and the letter before", "letter", False, steps(LETTERS, -1)[1:]
)

MONTH_PLACE = Relation(
    "month place",
    "calendar",
    "Months in the year",
    ("month", "place"),
    tuple(Fact(month, ordinal) for month, ordinal in zip(MONTHS, ORDINALS)),
    keys=(
        "place of {s} in the year",
        "the place of {s} among the months",
        "{s}, place in the year",
        "which month of the year {s} is",
        "order of {s} in the year",
        "{s}: place",
    ),
    running=(
        "{s} is the {v} month of the year.",
        "The {v} month of the year is {s}.",
        "{s} is the {v} month.",
        "The {v} month is {s}.",
        "As the {v} month of the year comes {s}.",
        "{V} month: {s}.",
        "{s} ({v} month)",
        "{V} is the place of {s} among the months.",
    ),
    exam=("Which month of the year is {s}?", "Which month is the {v} one?", "Name the {v} month of the year."),
    back_keys=(
        "{v} month of the year",
        "the {v} month of the year",
        "the {v} month",
        "month number {v}",
        "name of the {v} month",
    ),
)

RELATIONS = (
    CAPITAL,
    CONTINENT,
    LANGUAGE,
    CURRENCY,
    SYMBOL,
    NUMBER,
    ANIMAL_CLASS,
    YOUNG,
    SOUND,
    HOME,
    DIET,
    COLOUR,
    SHAPE,
    OPPOSITE,
    SYNONYM,
    PLURAL,
    PAST,
    COMPARATIVE,
    TRANSLATION,
    NUMBER_WORD,
    NUMBER_AFTER,
    DOUBLE,
    DAY_AFTER,
    DAY_BEFORE,
    MONTH_AFTER,
    MONTH_BEFORE,
    LETTER_AFTER,
    LETTER_BEFORE,
    MONTH_PLACE,
)

# -------------------------------------------------------------------------------------------------------- arithmetic


@dataclass(frozen=True)
class Operation:
    """Two numbers and a result, in words: what a `Relation` is for a table."""

    name: str
    result: Callable[[int, int], int]
    keys: tuple[str, ...]
    running: tuple[str, ...]
    exam: tuple[str, ...]


SUM = Operation(
    "sum",
    lambda a, b: a + b,
    keys=(
        "{a} + {b}",
        "{a} + {b} =",
        "sum of {a} and {b}",
        "the sum of {a} and {b}",
        "{a} plus {b}",
        "{a} and {b} together",
        "{b} added to {a}",
        "total of {a} and {b}",
        "what {a} and {b} make",
        "{a} and {b}, added up",
    ),
    running=(
        "{a} + {b} = {c}",
        "{a} plus {b} is {c}.",
        "{a} and {b} make {c}.",
        "The sum of {a} and {b} is {c}.",
        "{c} is the sum of {a} and {b}.",
        "{c} = {a} + {b}",
        "Adding {b} to {a} gives {c}.",
        "{A} plus {b_words} is {c_words}.",
        "{A} and {b_words} make {c_words}.",
        "{c} is what {a} and {b} make together.",
    ),
    exam=(
        "What is {a} + {b}?",
        "What is {a} plus {b}?",
        "{a} + {b} = ?",
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "How much is {a} plus {b}?",
    ),
)

DIFFERENCE = Operation(
    "difference",
    lambda a, b: a - b,
    keys=(
        "{a} - {b}",
        "{a} - {b} =",
        "difference of {a} and {b}",
        "the difference between {a} and {b}",
        "{a} minus {b}",
        "{a} less {b}",
        "{b} taken away from {a}",
        "what is left of {a} without {b}",
        "{b} subtracted from {a}",
    ),
    running=(
        "{a} - {b} = {c}",
        "{a} minus {b} is {c}.",
        "The difference between {a} and {b} is {c}.",
        "{c} is the difference between {a} and {b}.",
        "Taking {b} from {a} leaves {c}.",
        "{c} = {a} - {b}",
        "{a} less {b} is {c}.",
        "{A} minus {b_words} is {c_words}.",
        "{c} is left when {b} is taken from {a}.",
        "Subtracting {b} from {a} gives {c}.",
    ),
    exam=(
        "What is {a} - {b}?",
        "What is {a} minus {b}?",
        "{a} - {b} = ?",
        "Subtract {b} from {a}.",
        "What is the difference between {a} and {b}?",
        "How much is {a} minus {b}?",
    ),
)

GREATER = Operation(
    "greater",
    max,
    keys=(
        "greater of {a} and {b}",
        "the greater number, {a} or {b}",
        "the larger of {a} and {b}",
        "bigger number of {a} and {b}",
        "{a} or {b}, the bigger one",
        "of {a} and {b}, the greater",
        "maximum of {a} and {b}",
    ),
    running=(
        "{c} is greater than {d}.",
        "Of {a} and {b}, {c} is the greater.",
        "{c} is the bigger one of {a} and {b}.",
        "{c} > {d}",
        "The larger of {a} and {b} is {c}.",
        "{c} is more than {d}.",
        "The maximum of {a} and {b} is {c}.",
        "Comparing {a} with {b}, one finds that {c} is bigger.",
    ),
    exam=("Which is greater, {a} or {b}?", "Which number is bigger, {a} or {b}?", "Which is more, {a} or {b}?"),
)

SMALLER = Operation(
    "smaller",
    min,
    keys=(
        "smaller of {a} and {b}",
        "the smaller number, {a} or {b}",
        "the lesser of {a} and {b}",
        "smaller number of {a} and {b}",
        "{a} or {b}, the smaller one",
        "of {a} and {b}, the smaller",
        "minimum of {a} and {b}",
    ),
    running=(
        "{c} is smaller than {d}.",
        "Of {a} and {b}, {c} is the smaller.",
        "{c} is the smaller one of {a} and {b}.",
        "{c} < {d}",
        "The lesser of {a} and {b} is {c}.",
        "{c} is less than {d}.",
        "The minimum of {a} and {b} is {c}.",
        "Comparing {a} with {b}, one finds that {c} is smaller.",
    ),
    exam=("Which is smaller, {a} or {b}?", "Which number is smaller, {a} or {b}?", "Which is less, {a} or {b}?"),
)


def sum_steps(a: int, b: int) -> str:
    """`23 + 45` -> `3 + 5 = 8, 20 + 40 = 60, so 23 + 45 = 68`: ones first, then tens, then both."""
    if b < 10:
        return f"{a % 10} + {b} = {a % 10 + b}, {a - a % 10} + {a % 10 + b} = {a + b}, so {a} + {b} = {a + b}"
    ones, tens = a % 10 + b % 10, a - a % 10 + b - b % 10
    carry = f", {tens} + {ones} = {a + b}" if ones > 9 else ""
    return f"{a % 10} + {b % 10} = {ones}, {a - a % 10} + {b - b % 10} = {tens}{carry}, so {a} + {b} = {a + b}"


def difference_steps(a: int, b: int) -> str:
    """`62 - 45` -> `12 - 5 = 7, 50 - 40 = 10, so 62 - 45 = 17`: a ten is borrowed where the ones need it."""
    ones, tens = a % 10, a - a % 10
    if ones < b % 10:
        ones, tens = ones + 10, tens - 10
    rest = tens - (b - b % 10)
    return f"{ones} - {b % 10} = {ones - b % 10}, {tens} - {b - b % 10} = {rest}, so {a} - {b} = {a - b}"


def sum_carrying(a: int, b: int) -> str:
    """The same by columns, with the carry in words."""
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    if ones < 10:
        return f"Ones: {a % 10} + {b % 10} = {ones}. Tens: {a // 10} + {b // 10} = {tens}. Together {a + b}."
    columns = f"Ones: {a % 10} + {b % 10} = {ones}, write {ones - 10}, carry 1."
    return f"{columns} Tens: {a // 10} + {b // 10} + 1 = {tens + 1}. Together {a + b}."


STEP_KEYS = (
    "{x}, step by step",
    "{x} in steps",
    "the working of {x}",
    "{x}, ones first, then tens",
    "how one works out {x}",
    "steps for {x}",
    "worked example: {x}",
)

# ------------------------------------------------------------------------------------------------------- the writer

# a key, then its value at the start of a line; `{i}` is a running number; the first ones are the plainest
PLAIN_LAYOUTS = 8
LAYOUTS = (
    "{K}:\n{v}",
    "{K}\n{v}",
    "{k}\n{v}",
    "{k}:\n{v}",
    "{K}.\n{v}",
    "{K}\n\n{v}",
    "# {K}\n{v}",
    "[{K}]\n{v}",
    "{K} -\n{v}",
    "({k})\n{v}",
    "No. {i}: {k}\n{v}",
    "{i}. {K}\n{v}",
    "Entry {i}. {K}:\n{v}",
    "Card {i}\n{k}\n{v}",
    "{K}, see below:\n{v}",
    "The next entry is this: {k}.\n{v}",
    "Noted in the book under number {i}: {k}.\n{v}",
    "Front of the card: {k}. Back of the card:\n{v}",
    "{K} (short form)\n{v}",
    "In one line, {k}:\n{v}",
    "From the register, {k}.\nThe entry is short.\n{v}",
    "{K}, as printed in the old index:\n{v}",
    "{K}. A few words are enough for this.\n{v}",
    "Page {i}, {k}\n{v}",
)

# how often each kind of document is written, in parts
RATES = {
    "encyclopaedia": 8,
    "fact sheet": 16,
    "register": 16,
    "cards": 14,
    "notes": 8,
    "table": 7,
    "list": 2,
    "story": 20,
    "review": 4,
    "sums": 20,
    "comparison": 6,
    "timetable": 10,
    "records": 10,
    "copy book": 14,
    "exam": 3,
    "phrase book": 1,
}

FACT_KINDS = ("register", "cards", "notes")  # they state facts in a relation's own wordings, and hold nothing else
FLOOR = 60  # a relation of fewer facts is written as often as one of this many
GROUPS = ("country", "element", "animal")


class Deck:
    """Cards dealt without replacement, shuffled anew when they are all dealt: every fact gets its turn."""

    def __init__(self, cards: Sequence, rng: random.Random) -> None:
        self.cards, self.rng, self.left = list(cards), rng, []

    def deal(self):
        if not self.left:
            self.left = self.cards[:]
            self.rng.shuffle(self.left)
        return self.left.pop()


class Writer:
    """Writes documents; `tally` counts statements by relation and by where the value stands.

    tally[name, "line"]: value at a line's start, after its key (`back`: subject after its value).
    tally[name, "sentence"]: a whole sentence on a line after its heading.  tally[name, "running"]: all others.
    """

    def __init__(
        self, seed: int, wordings: int | None = None, line_start: bool = True, group: str | None = None
    ) -> None:
        self.rng = random.Random(seed)
        self.wordings, self.line_start = wordings, line_start
        self.relations = [relation for relation in RELATIONS if group in (None, relation.group)]
        self.weights = [max(FLOOR, len(relation.facts)) for relation in self.relations]
        self.tally: Counter = Counter()
        self.served = {relation.name: 0.0 for relation in RELATIONS}
        self.decks = {relation.name: Deck(relation.facts, self.rng) for relation in RELATIONS}
        self.pairs = {"sum": Deck(self.sum_pairs(), self.rng), "difference": Deck(self.difference_pairs(), self.rng)}
        self.entities = Deck([(g, s) for g in GROUPS for s in SUBJECTS[g]], self.rng)
        rates = {kind: RATES[kind] for kind in (FACT_KINDS if group else RATES)}
        self.kinds, self.rates = list(rates), list(rates.values())

    @staticmethod
    def sum_pairs() -> list[tuple[int, int]]:
        """All with a sum up to 100; the small ones, with which the others are worked out, six times as often."""
        pairs = [(a, b) for a in range(1, 100) for b in range(1, 101 - a)]
        return pairs + 5 * [(a, b) for a, b in pairs if max(a, b) <= 20]

    @staticmethod
    def difference_pairs() -> list[tuple[int, int]]:
        pairs = [(a, b) for a in range(1, 101) for b in range(1, a + 1)]
        return pairs + 5 * [(a, b) for a, b in pairs if a <= 20]

    # -- small choices

    def pick(self, items: Sequence):
        """One of the items."""
        return items[int(self.rng.random() * len(items))]

    def wording(self, items: Sequence[str]) -> str:
        """One of a fact's wordings; only the first few where the experiment asks for few."""
        return self.pick(items if self.wordings is None else items[: self.wordings])

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def count(self, low: int, high: int) -> int:
        return low + int(self.rng.random() * (high - low + 1))

    def relation(self) -> Relation:
        """The least served of four relations drawn by size: keeps facts of all tables about equally frequent."""
        drawn = self.rng.choices(self.relations, self.weights, k=4)
        return min(drawn, key=lambda relation: self.served[relation.name])

    def note(self, relation: Relation, where: str) -> None:
        self.tally[relation.name, where] += 1
        self.served[relation.name] += 1 / max(FLOOR, len(relation.facts))

    # -- statements

    def layout(self) -> str:
        """Mostly a plain one: words that say nothing cost tokens."""
        return self.wording(LAYOUTS[:PLAIN_LAYOUTS] if self.chance(0.65) else LAYOUTS)

    def lay_out(self, layout: str, key: str, value: str) -> str:
        """Key and value in a layout; with `line_start` off the value stands on its key's line instead."""
        layout = "{K}\n{v}" if key.endswith(" =") else layout
        text = layout.format(K=upper(key), k=key, v=value, i=self.count(1, 99))
        if self.line_start:
            return text
        head, _, value = text.rpartition("\n")
        return f"{head.rstrip()} {value}"

    def turn(self, relation: Relation) -> bool:
        """Whether to write from the value to the subject; mostly so where each entity has a value of its own.

        Documents about an entity never turn a fact, and a fact read in one direction is not known in the other.
        """
        one_to_one = relation.group in GROUPS and len(relation.unique_values) == len(relation.facts)
        return bool(relation.back_keys) and self.chance(0.8 if one_to_one else 0.45)

    def line(self, relation: Relation, fact: Fact, layout: str = "", key: str = "", back: bool | None = None) -> str:
        """A statement with the value at the start of a line, after its key; sometimes the other way round."""
        may_turn = relation.back_keys and fact.value in relation.unique_values
        turned = may_turn and (self.turn(relation) if back is None else back)
        self.note(relation, "back" if turned else "line")
        key = key if key and not turned else self.wording(relation.back_keys if turned else relation.keys)
        key = key.format_map(fact.fields)
        if self.chance(0.03):
            key = key.lower()
        return self.lay_out(layout or self.layout(), key, fact.fields["n"] if turned else fact.value)

    def sentence(self, relation: Relation, fact: Fact) -> str:
        """A heading, then the fact as a whole sentence on the next line."""
        self.note(relation, "sentence")
        key = self.wording(relation.keys).format_map(fact.fields)
        return f"{upper(key)}\n{self.wording(relation.running).format_map(fact.fields)}"

    def running(self, relation: Relation, fact: Fact) -> str:
        """A statement in running text."""
        self.note(relation, "running")
        return self.wording(relation.running).format_map(fact.fields)

    # -- documents about facts

    def entity(self) -> tuple[str, list[tuple[Relation, Fact]]]:
        """A country, an element or an animal with all its facts, in random order."""
        group, subject = self.entities.deal()
        facts = SUBJECTS[group][subject][:]
        self.rng.shuffle(facts)
        return bare(subject), facts

    def encyclopaedia(self) -> str:
        """An entry: a title and a paragraph or two of running sentences, some facts twice in other words."""
        title, facts = self.entity()
        sentences = [self.running(relation, fact) for relation, fact in facts]
        if self.chance(0.5):
            sentences += [self.running(*self.pick(facts)) for _ in range(2)]
        last = "\n" + self.sentence(*self.pick(facts)) if self.chance(0.3) else ""
        return f"{upper(title)}\n\n{' '.join(sentences)}{last}"

    def fact_sheet(self) -> str:
        """One entity, key and value on lines of their own, in one of several designs."""
        title, facts = self.entity()
        design = self.pick((0, 1, 1, 1, 1, 2, 3, 4))
        if design == 0:  # short keys under the title, one design of line
            mark = self.pick(("{}:\n{}", "{}\n{}", "{}\n\n{}", "{}.\n{}", "- {}\n{}"))
            nouns = [self.noted_line(relation, mark, upper(relation.json_keys[1]), fact) for relation, fact in facts]
            return f"{upper(title)}\n\n" + "\n".join(nouns)
        if design == 1:  # the columns in the heading, the values below
            facts = facts[: self.count(2, 3)]
            heading = f"{upper(title)}: {in_a_row([relation.json_keys[1] for relation, _ in facts])}"
            return heading + "\n" + "\n".join(self.noted_line(relation, "{1}", "", fact) for relation, fact in facts)
        if design == 2:  # one layout throughout
            layout = self.layout()
            rows = [self.line(relation, fact, layout, back=False) for relation, fact in facts]
            return f"Fact sheet: {title}\n\n" + "\n".join(rows)
        if design == 3:  # headings and sentences
            rows = [self.sentence(relation, fact) for relation, fact in facts]
            return f"{upper(title)}\n\n" + "\n\n".join(rows)
        return "\n".join(self.line(relation, fact) for relation, fact in facts)

    def noted_line(self, relation: Relation, mark: str, key: str, fact: Fact) -> str:
        """A row of a fact sheet under its entity's title: short key, then the value at the start of a line."""
        self.note(relation, "line")
        row = mark.format(key, fact.value)
        return row if self.line_start else row.replace("\n", " ")

    def register(self) -> str:
        """Many facts of one relation in one layout and one wording, as in an index."""
        relation, layout = self.relation(), self.layout()
        back = bool(relation.unique_values) and self.turn(relation)
        key = self.wording(relation.keys)
        rows = [
            self.line(relation, self.decks[relation.name].deal(), layout, key, back=back)
            for _ in range(self.count(5, 12))
        ]
        heading = f"{relation.title}\n\n" if self.chance(0.6) else ""
        return heading + self.pick(("\n", "\n\n")).join(rows)

    def cards(self) -> str:
        """Facts of all kinds, each in a layout of its own or all in one."""
        layout = self.layout() if self.chance(0.6) else ""
        rows = []
        for _ in range(self.count(5, 12)):
            relation = self.relation()
            fact = self.decks[relation.name].deal()
            rows.append(self.sentence(relation, fact) if self.chance(0.25) else self.line(relation, fact, layout))
        return self.pick(("\n", "\n\n")).join(rows)

    def notes(self) -> str:
        """Running sentences: of one relation, or of many."""
        fixed = self.relation() if self.chance(0.5) else None
        sentences = []
        for _ in range(self.count(5, 12)):
            relation = fixed or self.relation()
            sentences.append(self.running(relation, self.decks[relation.name].deal()))
        return self.pick((" ", "\n")).join(sentences)

    def table(self) -> str:
        """A table read by lines: under its title a subject, its value below, the next subject."""
        relation = self.relation()
        mark = self.pick(("{}\n{}", "{}:\n{}", "{}\n{}\n", "{} | {}", "{} - {}", "{} ... {}"))
        where = "line" if "\n" in mark and self.line_start else "running"
        turn = self.turn(relation)
        rows = []
        for _ in range(self.count(6, 14)):
            fact = self.decks[relation.name].deal()
            turned = turn and fact.value in relation.unique_values
            self.note(relation, "back" if turned else where)
            rows.append(mark.format(*((fact.value, fact.fields["n"]) if turned else (fact.fields["n"], fact.value))))
        text = f"{relation.title}\n\n" + "\n".join(rows)
        return text if where == "line" else text.replace(":\n", ": ")

    def listing(self) -> str:
        """What shares a value: the countries of a continent, red things, mammals."""
        relation = self.pick(LISTED)
        value = self.pick(sorted({fact.value for fact in relation.facts} - relation.unique_values))
        members = [fact.fields["n"] for fact in relation.facts if fact.value == value]
        self.rng.shuffle(members)
        members = members[: self.count(3, 10)]
        heading = self.pick(LISTED_HEADINGS[relation.name]).format(v=value, V=upper(value))
        if self.chance(0.5):
            return f"{heading}:\n" + "\n".join(members)
        return f"{heading}: {', '.join(members[:-1])} and {members[-1]}."

    def comparison(self) -> str:
        """Two subjects side by side, and numbers by size."""
        if self.chance(0.35):
            return self.number_comparison()
        relation = self.relation()
        deal = self.decks[relation.name].deal
        rows = []
        for _ in range(self.count(2, 5)):
            one, two = deal(), deal()
            if one.value == two.value:
                rows.append(f"{upper(one.fields['n'])} and {two.fields['n']} are alike here: {one.value}.")
                self.note(relation, "running")
                continue
            first, second = self.running(relation, one), self.running(relation, two)
            if first.endswith(".") and second.endswith("."):
                rows.append(self.pick((f"{first} But then: {second}", f"{first} On the other hand: {second}")))
            else:
                rows += [first, second]
        return f"{relation.title}, compared\n\n" + "\n".join(rows)

    def number_comparison(self) -> str:
        operation = self.pick((GREATER, SMALLER))
        rows = []
        for _ in range(self.count(5, 12)):
            a, b = self.count(0, 100), self.count(0, 100)
            if a != b:
                rows.append(self.calculation(operation, a, b))
        return "\n".join(rows)

    def records(self) -> str:
        """Facts as JSON records, after a heading or in a row; keys in the table's own words."""
        rows = []
        if self.chance(0.7):
            for _ in range(self.count(2, 4)):
                title, facts = self.entity()
                facts = facts[: self.count(1, 3)]
                first = facts[0][0]
                cells = [(first.json_keys[0], title)]
                for relation, fact in facts:
                    self.note(relation, "running")
                    cells.append((relation.json_keys[1], fact.value))
                heading = self.pick(RECORD_HEADINGS).format(n=title, k=in_a_row([key for key, _ in cells[1:]]))
                rows.append(heading + json_object(cells))
        else:
            relation, bare_rows = self.relation(), self.chance(0.4)
            heading = self.pick(RECORD_HEADINGS)
            for _ in range(self.count(3, 6)):
                fact = self.decks[relation.name].deal()
                self.note(relation, "running")
                subject, value = relation.json_keys
                row = json_object([(subject, fact.fields["n"]), (value, fact.value)])
                rows.append(row if bare_rows else heading.format(n=fact.fields["n"], k=value) + row)
        return "\n".join(rows)

    def exam(self) -> str:
        """An exam sheet: questions and tasks one below the other, without any answer."""
        heading = self.pick(("Exam paper", "Test", "Exercises", "Quiz sheet", "Examination", "Homework"))
        rows = []
        if self.chance(0.25):
            tale = self.tale()
            rows = [f"Read the story. {tale['text']}"] + tale["questions"]
        else:
            fixed = self.relation() if self.chance(0.4) else None
            for _ in range(self.count(5, 10)):
                if self.chance(0.2):
                    operation = self.pick((SUM, DIFFERENCE, GREATER, SMALLER))
                    rows.append(self.pick(operation.exam).format_map(self.numbers(operation, *self.pair(operation))))
                else:
                    relation = fixed or self.relation()
                    fact = self.pick(relation.facts)
                    rows.append(self.pick(relation.exam).format_map(fact.fields))
        if self.chance(0.5):
            rows = [f"{i}. {row}" for i, row in enumerate(rows, 1)]
        return f"{heading} {self.count(1, 40)}\n\n" + "\n".join(rows)

    # -- arithmetic

    def pair(self, operation: Operation) -> tuple[int, int]:
        if operation.name in self.pairs:
            return self.pairs[operation.name].deal()
        a = self.count(0, 100)
        return a, (a + self.count(1, 99)) % 101

    @staticmethod
    def numbers(operation: Operation, a: int, b: int) -> dict[str, str]:
        c = operation.result(a, b)
        fields = {"a": str(a), "b": str(b), "c": str(c), "d": str(a + b - c)}
        return fields | {"A": upper(number_word(a)), "b_words": number_word(b), "c_words": number_word(c)}

    def calculation(self, operation: Operation, a: int, b: int, layout: str = "") -> str:
        """One sum, difference or comparison: on two lines (always, if a layout is given), or in one sentence."""
        fields = self.numbers(operation, a, b)
        if layout or self.chance(0.6):
            self.tally[operation.name, "line"] += 1
            return self.lay_out(layout or self.layout(), self.wording(operation.keys).format_map(fields), fields["c"])
        self.tally[operation.name, "running"] += 1
        return self.wording(operation.running).format_map(fields)

    def worked(self, a: int, b: int, adding: bool) -> str:
        """A sum or difference with its steps, on the line after its key."""
        task = f"{a} + {b}" if adding else f"{a} - {b}"
        self.tally["sum" if adding else "difference", "steps"] += 1
        if adding and b >= 10 and self.chance(0.2):
            return f"{task}, in columns\n{sum_carrying(a, b)}"
        way = sum_steps(a, b) if adding else difference_steps(a, b)
        if self.chance(0.3):
            return upper(way) + "."
        return self.lay_out(self.layout(), self.wording(STEP_KEYS).format(x=task), way)

    def sums(self) -> str:
        """A page of sums, differences or both: plain, in words, or worked step by step."""
        operations = self.pick(((SUM,), (DIFFERENCE,), (SUM, DIFFERENCE)))
        style = self.pick(("plain", "mixed", "mixed", "mixed", "steps", "lines", "lines", "lines"))
        layout, rows = self.layout(), []
        for _ in range(self.count(6, 14)):
            operation = self.pick(operations)
            a, b = self.pair(operation)
            if style == "plain":
                self.tally[operation.name, "running"] += 1
                rows.append(operation.running[0].format_map(self.numbers(operation, a, b)))
            elif a >= 10 and (style == "steps" or style == "mixed" and self.chance(0.3)):
                rows.append(self.worked(a, b, operation is SUM))
            else:
                rows.append(self.calculation(operation, a, b, layout if style == "lines" else ""))
        return "\n".join(rows)

    # -- documents of other kinds

    def timetable(self) -> str:
        """Days, months, letters and numbers in their order, and a plan of the week."""
        kind = self.pick((0, 1, 1, 1, 1, 2, 3))
        if kind == 0:
            items = self.pick((DAYS, MONTHS, LETTERS, [number_word(n) for n in range(101)]))
            start = self.count(0, len(items) - 2)
            return self.pick((", ", "\n", " ")).join(items[start : start + self.count(4, 12)])
        if kind == 1:
            return "\n".join(self.number_row() for _ in range(self.count(2, 5)))
        who = self.pick(NAMES)
        rows = []
        for day in DAYS if kind == 2 else MONTHS[self.count(0, 5) :][:6]:
            place = self.pick(PLACE_LIST)
            rows.append(self.pick((f"{day}: {who} is {place}.", f"{day}\n{upper(place)}")))
        return f"Plan of {who}\n\n" + "\n".join(rows)

    def number_row(self) -> str:
        """Numbers in a row, mostly from one to the next, after a heading that names the first and the last."""
        by = self.pick((1, 1, 1, 1, 1, 2, 10))
        start = self.count(0, 100 - 2 * by)
        numbers = [start + by * i for i in range(self.count(3, 9)) if start + by * i <= 100]
        heading = self.pick(NUMBER_HEADINGS) if by == 1 else ""
        return heading.format(start, numbers[-1]) + ", ".join(map(str, numbers))

    def hero(self) -> str:
        """Who a story is about: often a name that no list holds, which can only be read in the story."""
        return upper(self.made_up_word()) if self.chance(0.25) else self.pick(NAMES)

    def thing(self) -> str:
        return with_article(f"{self.pick(QUALITIES)} {self.noun()}") if self.chance(0.3) else self.pick(OBJECT_LIST)

    def place(self) -> str:
        return f"{self.pick(PREPOSITIONS)} the {self.noun()}" if self.chance(0.3) else self.pick(PLACE_LIST)

    def noun(self) -> str:
        return self.pick(PLURAL.facts).fields["n"]

    def tale(self) -> dict:
        """A short story of one or two people, with notes and questions about who did what, where and when."""
        heroes = []
        for who in dict.fromkeys(self.hero() for _ in range(1 if self.chance(0.6) else 2)):
            past, plain, _ = self.pick(ACTION_LIST)
            parts = {"who": who, "past": past, "plain": plain, "what": self.thing()}
            heroes.append(parts | {"where": self.place(), "when": self.pick(TIME_LIST)})
        text, notes, questions, summary = [], [], [], []
        for hero in heroes:
            fields = hero | {"When": upper(hero["when"]), "Where": upper(hero["where"]), "it": definite(hero["what"])}
            text.append(self.pick(STORY_OPENINGS).format_map(fields))
            text += self.rng.sample(FILLER_LIST, self.count(0, 2))
            for part in ("who", "what", "where", "when"):
                keys = NOTE_KEYS[part] + (SHORT_NOTE_KEYS[part] if len(heroes) == 1 else ())
                notes.append((self.pick(keys).format_map(fields), hero[part], part))
            questions += [self.pick(STORY_QUESTIONS[part]).format_map(fields) for part in STORY_QUESTIONS]
            summary.append(self.pick(STORY_SUMMARIES).format_map(fields))
        self.rng.shuffle(notes)
        self.rng.shuffle(questions)
        return {"text": " ".join(text), "notes": notes, "questions": questions, "summary": " ".join(summary)}

    def story(self) -> str:
        """A story, often with a summary or with notes below it, now and then as a record."""
        tale = self.tale()
        parts = [tale["text"]]
        if self.chance(0.3):
            parts.append(f"{self.pick(SUMMARY_HEADINGS)}\n{tale['summary']}")
        if self.chance(0.75):
            layout = self.layout() if self.chance(0.5) else self.pick(LAYOUTS[:4])
            notes = tale["notes"][: self.count(1, 4)]
            for _, _, part in notes:
                self.tally["story " + part, "line"] += 1
            parts.append("\n".join(self.lay_out(layout, key, value) for key, value, _ in notes))
        elif len(tale["notes"]) == 4:
            found = [
                (part, value) for part in ("who", "what", "where", "when") for _, value, p in tale["notes"] if p == part
            ]
            cells = found if self.chance(0.5) else self.rng.sample(found, self.count(1, 3))
            parts.append(f"As a record: {in_a_row([part for part, _ in cells])}\n{json_object(cells)}")
        return "\n\n".join(parts)

    def opinion(self) -> tuple[str, str]:
        """A short review, and whether it is positive or negative."""
        thing, good, bad = self.pick(REVIEW_LIST)
        positive = self.chance(0.5)
        particular, general = (good, self.pick(PRAISE_LIST)) if positive else (bad, self.pick(BLAME_LIST))
        sentences = self.pick(((particular,), (general, particular), (particular, general), (general,)))
        opening = f"{self.pick(REVIEW_OPENINGS).format(thing=thing)} " if self.chance(0.6) else ""
        return opening + " ".join(sentences), "positive" if positive else "negative"

    def review(self) -> str:
        """Reviews, each with its label on the next line: one alone, or several one below the other."""
        layout, key = self.layout(), self.pick(LABEL_KEYS)
        rows = []
        for _ in range(self.pick((1, 2, 3, 4, 5))):
            text, label = self.opinion()
            if self.chance(0.1):
                self.tally["sentiment", "running"] += 1
                rows.append(f"This is a {label} review. {text}")
            else:
                self.tally["sentiment", "line"] += 1
                rows.append(f"{text}\n{self.lay_out(layout, key, label)}")
        return "\n\n".join(rows)

    def made_up_word(self) -> str:
        """One that means nothing: it can only be copied."""
        syllables = (self.pick(ONSETS) + self.pick("aeiou") + self.pick(CODAS) for _ in range(self.count(1, 3)))
        return "".join(syllables)

    def copied_line(self) -> str:
        """Words, real and made up, and numbers."""
        words = []
        for _ in range(self.count(1, 5)):
            real = self.pick(self.relation().facts).fields["n"]
            words.append(self.pick((real, self.made_up_word(), upper(self.made_up_word()), str(self.count(0, 100)))))
        return " ".join(words)

    def character(self) -> str:
        trade = f"{self.noun()} {self.pick(MAKERS)}" if self.chance(0.4) else self.pick(TRADES)
        trade = (self.pick(ADJECTIVES) + " " if self.chance(0.5) else "") + trade
        name = self.pick((self.made_up_word(), self.made_up_word(), self.noun(), self.pick(NAMES + QUALITIES)))
        return f"{self.pick(TITLES)} {upper(name)}, {with_article(trade)}"

    def saying(self) -> str:
        """A few words that nobody can foresee."""
        phrase = [
            self.pick((self.made_up_word(), self.noun(), self.pick(QUALITIES), self.pick(PHRASE_WORDS)))
            for _ in range(self.count(1, 4))
        ]
        return upper(self.pick((" ", " ", " ", ", ", "-")).join(phrase)) + self.pick("!!!.?")

    def copy_book(self) -> str:
        """What stands there already, word for word: lines, lists, names, sayings. Teaches to copy what is new."""
        kind = self.count(0, 3)
        if kind == 0:
            rows = [line for _ in range(self.count(2, 5)) for line in [self.copied_line()] * self.count(2, 3)]
            return "Copy book\n\n" + "\n".join(rows)
        if kind == 1:
            rows = "\n".join(self.copied_line() for _ in range(self.count(3, 7)))
            return f"{self.pick(('First copy', 'The list', 'Draft'))}\n{rows}\n\nThe same again\n{rows}"
        if kind == 2:
            ways = ("{who}\nI am {who}.", "At the door: {who}\nI am {who}.", "{who}. {who}.")
            rows = [self.pick(ways).format(who=self.character()) for _ in range(self.count(2, 5))]
            return "Visitors\n\n" + "\n".join(rows)
        return "\n\n".join(self.closing_words() for _ in range(self.count(1, 3)))

    def closing_words(self) -> str:
        """Lines that all end with the same saying."""
        saying = self.saying()
        rows = [f"{self.pick(self.relation().facts).value}. {saying}" for _ in range(self.count(1, 3))]
        return self.pick(CLOSING_WORDS).format(who=self.pick(TRADES), words=saying) + "\n" + "\n".join(rows)

    def phrase_book(self) -> str:
        """Occasions, and what one says on them."""
        rows = []
        for phrase, occasion in self.rng.sample(PHRASE_LIST, self.count(3, 8)):
            rows.append(
                self.pick((f"{upper(occasion)}\n{phrase}", f"{upper(occasion)}:\n{phrase}", f"{phrase} ({occasion})"))
            )
        return "Phrase book\n\n" + "\n".join(rows)

    def document(self) -> tuple[str, str]:
        """The next document and its kind."""
        kind = self.rng.choices(self.kinds, self.rates)[0]
        method = {"list": "listing"}.get(kind, kind.replace(" ", "_"))
        return kind, getattr(self, method)().strip()


def in_a_row(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def json_object(cells: Sequence[tuple[str, str]]) -> str:
    """A JSON object on one line; whole numbers stand without quotation marks."""
    parts = (f'"{key}": {value if value.isdigit() else chr(34) + value + chr(34)}' for key, value in cells)
    return "{" + ", ".join(parts) + "}"


# ------------------------------------------------------------------------------------- tables read once, for writing

PLACE_LIST = PLACES.strip().splitlines()
TIME_LIST = TIMES.strip().splitlines()
OBJECT_LIST = OBJECTS.strip().splitlines()
FILLER_LIST = FILLERS.strip().splitlines()
ACTION_LIST = table(ACTIONS)
REVIEW_LIST = table(REVIEWED)
PRAISE_LIST = PRAISE.strip().splitlines()
BLAME_LIST = BLAME.strip().splitlines()
PHRASE_LIST = table(PHRASES)


def subjects(group: str) -> dict[str, list[tuple[Relation, Fact]]]:
    """All facts of each country, element or animal."""
    found: dict[str, list[tuple[Relation, Fact]]] = {}
    for relation in RELATIONS:
        if relation.group == group:
            for fact in relation.facts:
                found.setdefault(fact.subject, []).append((relation, fact))
    return found


SUBJECTS = {group: subjects(group) for group in GROUPS}
LISTED = (CONTINENT, LANGUAGE, ANIMAL_CLASS, COLOUR, SHAPE, HOME, DIET)
LISTED_HEADINGS = {
    "continent": ("Countries in {v}", "{V}: some countries", "Some countries of {v}"),
    "language": ("Countries where {v} is spoken", "{V} is spoken in these countries"),
    "animal class": ("Animals of the class {v}", "{V}: some animals", "Class of animals: {v}"),
    "colour": ("Things that are {v}", "{V} things", "Some {v} things"),
    "shape": ("Things of this shape: {v}", "Shape: {v}"),
    "home": ("Animals with this home: {v}", "Home: {v}"),
    "diet": ("Animals that eat {v}", "Eaters of {v}"),
}
RECORD_HEADINGS = (
    "Record of {n} ({k})\n",
    "{n} / {k}\n",
    "Row {n}, columns {k}\n",
    "Entry for {n}: {k}\n",
    "Exported: {k} of {n}\n",
    "{n}, fields {k}:\n",
)
ONSETS = words("b d f g h j k l m n p r s t v w z bl br ch dr fl gr kl kr pl sh sk sl sp st tr")
CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "ck", "nd", "x")
TITLES = words(
    "Captain Professor Miss Doctor Old Lady Uncle Mister Aunt Sir Queen Master Little Big Madame Cousin Chef"
)
ADJECTIVES = words("old young kind wise brave friendly quiet clever tall small honest cheerful helpful good")
TRADES = words(
    "baker sailor doctor gardener painter singer knight dancer farmer cook nurse guard miller weaver hunter"
    " shepherd carpenter fisherman teacher potter driver pirate cowboy king wizard ghost clown soldier detective"
)
MAKERS = words("maker seller painter collector mender finder keeper builder expert driver")
QUALITIES = words(
    "red blue green yellow black white brown grey orange purple small big old new heavy light round long short broken"
    " wooden silver golden wet dry clean dirty strange beautiful cheap empty little tall fine plain"
)
PREPOSITIONS = ("at the back of", "near", "behind", "in front of", "next to", "under", "beside", "on", "in", "opposite")
PHRASE_WORDS = words(
    "yes no so be it well done oh my sir madam good luck hurrah never always go on come here there we you they and or"
    " not too very much thanks please all right let us see what a day it is time to the of for ever once more"
)
CLOSING_WORDS = (
    'The {who} closes every line with "{words}"',
    'Every line of the {who} ends with "{words}"',
    'Here each line closes with the words "{words}"',
    '"{words}", the {who} always says at the end.',
    'The {who} always adds "{words}"',
)
NUMBER_HEADINGS = (
    "{} to {}\n",
    "Numbers {} to {}:\n",
    "From {} up to {}\n",
    "All numbers from {} to {}\n",
    "{} up to {}:\n",
    "Numbers between {} and {}, both included\n",
    "",
)
STORY_OPENINGS = (
    "{When}, {who} {past} {what} {where}.",
    "{who} {past} {what} {where} {when}.",
    "{Where}, {who} {past} {what} {when}.",
    "{who} was {where}. {When}, {who} {past} {what} there.",
    "{When}, {who} was {where} and {past} {what}.",
    "It happened {when}: {who} {past} {what} {where}.",
    "{Where}, it was {who} who {past} {what}. That was {when}.",
)
STORY_SUMMARIES = (
    "{who} {past} {what} {where}.",
    "{who} {past} {what} {where}.",
    "{who} {past} {what} {where}.",
    "{who} {past} {what}.",
    "{who} {past} {what} {where} {when}.",
)
SUMMARY_HEADINGS = ("Summary", "Summary:", "In one sentence", "The story in one sentence:", "In short", "What happened")
NOTE_KEYS = {
    "who": (
        "who {past} {it}",
        "person who {past} {it}",
        "name of the person who {past} {it}",
        "the one who {past} {it}",
    ),
    "what": ("what {who} {past}", "thing that {who} {past}", "the thing {who} {past}", "the thing that {who} {past}"),
    "where": ("where {who} {past} {it}", "place where {who} {past} {it}", "where {who} was", "the place of {who}"),
    "when": ("when {who} {past} {it}", "time when {who} {past} {it}", "the time at which {who} {past} {it}"),
}
SHORT_NOTE_KEYS = {
    "who": ("who", "person", "name of the person", "person in the story", "the main person of the story"),
    "what": ("what", "thing", "thing in the story", "the object"),
    "where": ("where", "place", "place of the story", "where it happened"),
    "when": ("when", "time", "time of the story", "when it happened"),
}
STORY_QUESTIONS = {
    "who": ("Who {past} {it}?", "Who is the story about?", "Which person {past} {it}?"),
    "what": ("What did {who} {plain}?", "Which thing did {who} {plain}?"),
    "where": ("Where did {who} {plain} {it}?", "Where was {who}?", "In what place was {who}?"),
    "when": ("When did {who} {plain} {it}?", "When did it happen?", "At what time did {who} {plain} {it}?"),
}
REVIEW_OPENINGS = (
    "A word about the {thing}.",
    "Review of a {thing}.",
    "The {thing} again.",
    "I tried this {thing}.",
    "About our {thing}:",
)
LABEL_KEYS = (
    "sentiment",
    "opinion",
    "verdict",
    "sentiment of the review",
    "feeling of this review",
    "kind of review",
    "tone of the review",
    "rating",
    "the review is",
    "judgement",
    "mood of the customer",
)


def documents(
    seed: int, wordings: int | None = None, line_start: bool = True, group: str | None = None
) -> Iterator[str]:
    """An endless stream of pretraining documents: the same seed gives the same stream on every machine.

    The other arguments are for experiments on what a base must have read before it can be tuned: `wordings` allows
    only the first so many wordings of each fact, `line_start=False` never puts a value at a line's start, and `group`
    ("country", "element", "animal") leaves only statements about these.
    """
    writer = Writer(seed, wordings, line_start, group)
    while True:
        yield writer.document()[1]
