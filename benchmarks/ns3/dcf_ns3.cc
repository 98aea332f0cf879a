// Saturated DCF in ns-3, arranged to be comparable with the slotted channel of fedmorl.dca.
//
// N stations and one sink, all 802.11a in ad-hoc mode without QoS, hear each other at equal power. Every station
// always has a packet for the sink. One JSON line goes to standard output: what was counted in the measured
// window, and what was timed during the warm-up (length of an exchange, instants at which stations resume).
//
// Times: slot 9 us, SIFS 18 us (set on the PHY; the 802.11a default is 16), hence DIFS = SIFS + 2 slots = 36 us.

#include "ns3/core-module.h"
#include "ns3/mobility-module.h"
#include "ns3/network-module.h"
#include "ns3/wifi-module.h"

#include <algorithm>
#include <ctime>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

using namespace ns3;

namespace
{

constexpr double SLOT_US = 9;
constexpr double SIFS_US = 18;
constexpr double EXCHANGE_US = 1080;      // 120 slots: what fedmorl.dca counts as one packet
constexpr uint32_t PAYLOAD_BYTES = 1476;  // DATA + SIFS + ACK = 1082 us; OFDM symbols of 4 us allow 1078 or 1082
constexpr uint32_t SMALLEST_DATA = 500;   // bytes; anything shorter on the air is an ACK

struct Options
{
    uint32_t nStations = 2;
    uint32_t cwMin = 7;
    uint32_t cwMax = 1023;
    uint32_t rngSeed = 1;
    uint32_t rngRun = 1;
    double measuredS = 20;
    double warmupS = 1;
    bool decodeHeaders = false;
};

Options
ParseOptions(int argc, char** argv)
{
    Options o;
    CommandLine cmd;
    cmd.Usage("Saturated 802.11a DCF: n_stations senders, one sink. Prints one JSON line.");
    cmd.AddValue("n_stations", "number of sending stations", o.nStations);
    cmd.AddValue("cw_min", "smallest contention window, as the largest draw", o.cwMin);
    cmd.AddValue("cw_max", "largest contention window, as the largest draw", o.cwMax);
    cmd.AddValue("rng_seed", "seed of ns-3's generator, > 0", o.rngSeed);
    cmd.AddValue("rng_run", "run number (sub-stream) of ns-3's generator", o.rngRun);
    cmd.AddValue("measured_s", "measured simulated seconds, after the warm-up", o.measuredS);
    cmd.AddValue("warmup_s", "simulated seconds before the measurement, used for timing", o.warmupS);
    cmd.AddValue("decode_headers", "let every PHY header be decoded, even in a collision of many", o.decodeHeaders);
    cmd.Parse(argc, argv);
    return o;
}

std::string
Complaint(const Options& o)
{
    if (o.nStations < 1 || o.nStations > 250)
    {
        return "n_stations must be 1..250";
    }
    if (o.cwMin > o.cwMax)
    {
        return "cw_min must not exceed cw_max";
    }
    if (!(o.measuredS > 0) || !(o.warmupS > 0))
    {
        return "measured_s and warmup_s must be > 0";
    }
    return o.rngSeed < 1 ? "rng_seed must be > 0" : "";
}

// Replaces ns-3's error model with --decode_headers: a frame fails if and only if it is hit by another, and then in
// its body. By default a header hit by two or more others is often lost as well, and its listeners skip EIFS.
class HeadersSurvive : public ErrorRateModel
{
  public:
    static TypeId GetTypeId()
    {
        static const TypeId id =
            TypeId("HeadersSurvive").SetParent<ErrorRateModel>().AddConstructor<HeadersSurvive>();
        return id;
    }

  private:
    double DoGetChunkSuccessRate(WifiMode, const WifiTxVector&, double snr, uint64_t, uint8_t, WifiPpduField field,
                                 uint16_t) const override
    {
        constexpr double COLLISION_SNR = 2; // two frames at equal power: 1; one frame alone: > 1e4
        return field != WIFI_PPDU_FIELD_DATA || snr > COLLISION_SNR ? 1 : 0;
    }
};

NS_OBJECT_ENSURE_REGISTERED(HeadersSurvive);

// Counts over the measured window, and the timing seen before it.
class Observer
{
  public:
    Observer(const Options& options)
        : received(options.nStations, 0),
          m_begin(Seconds(options.warmupS)),
          m_end(Seconds(options.warmupS + options.measuredS))
    {
    }

    void Watch(uint32_t station, Ptr<WifiNetDevice> device)
    {
        m_devices.push_back(device);
        m_stationOf[device->GetAddress()] = station;
        device->GetPhy()->TraceConnectWithoutContext("PhyTxBegin", MakeCallback(&Observer::TxBegin, this).Bind(station));
        device->GetPhy()->TraceConnectWithoutContext("PhyTxEnd", MakeCallback(&Observer::TxEnd, this));
        device->GetMac()->TraceConnectWithoutContext("AckedMpdu", MakeCallback(&Observer::Acked, this));
    }

    // The sink got a packet (trace source Rx of PacketSocketServer).
    void Rx(Ptr<const Packet>, const Address& from)
    {
        if (Measuring())
        {
            received[m_stationOf.at(PacketSocketAddress::ConvertFrom(from).GetPhysicalAddress())]++;
        }
    }

    using Histogram = std::map<double, uint64_t>; // microseconds -> how often

    std::vector<uint64_t> received;
    uint64_t transmissions = 0;
    Histogram exchangeUs; // start of DATA to end of ACK
    // End of DATA to the first instant at which the station's back-off may count (its DIFS or EIFS is over then):
    std::map<std::string, Histogram> resumeUs;

  private:
    bool Measuring() const
    {
        return Simulator::Now() > m_begin && Simulator::Now() <= m_end;
    }

    // A burst: the transmissions that overlap. They need not start together: a station hears a frame only 4 us
    // after its start, and stations that resumed at different instants count on shifted slot grids.
    void TxBegin(uint32_t station, Ptr<const Packet> packet, double)
    {
        if (packet->GetSize() < SMALLEST_DATA)
        {
            return;
        }
        transmissions += Measuring();
        if (m_onAir == 0)
        {
            m_burstStart = Simulator::Now();
            m_senders.clear();
        }
        m_onAir++;
        m_senders.push_back(station);
    }

    // During the warm-up: once per burst, look at every station when the outcome is settled but nobody has moved.
    void TxEnd(Ptr<const Packet> packet)
    {
        if (packet->GetSize() < SMALLEST_DATA || --m_onAir > 0 || Simulator::Now() > m_begin)
        {
            return;
        }
        const double wait = m_senders.size() == 1 ? 51 : 20; // us: after the ACK; before DIFS could be over
        Simulator::Schedule(MicroSeconds(wait), &Observer::ProbeResume, this, m_senders, Simulator::Now());
    }

    void ProbeResume(std::vector<uint32_t> senders, Time dataEnd)
    {
        const std::string burst = std::to_string(senders.size()) + "_sent_";
        for (uint32_t station = 0; station < m_devices.size(); ++station)
        {
            const bool sent = std::find(senders.begin(), senders.end(), station) != senders.end();
            const auto mac = m_devices[station]->GetMac();
            const Time resume = mac->GetChannelAccessManager()->GetAccessGrantStart() +
                                mac->GetTxop()->GetAifsn() * MicroSeconds(SLOT_US);
            resumeUs[burst + (sent ? "sender" : "listener")][(resume - dataEnd).GetNanoSeconds() / 1e3]++;
        }
    }

    void Acked(Ptr<const WifiMpdu>)
    {
        if (Simulator::Now() <= m_begin)
        {
            exchangeUs[(Simulator::Now() - m_burstStart).GetNanoSeconds() / 1e3]++;
        }
    }

    const Time m_begin;
    const Time m_end;
    Time m_burstStart;
    uint32_t m_onAir = 0; // DATA frames in transmission
    std::vector<uint32_t> m_senders;
    std::vector<Ptr<WifiNetDevice>> m_devices;
    std::map<Address, uint32_t> m_stationOf;
};

NetDeviceContainer
InstallWifi(const NodeContainer& nodes, const Options& o)
{
    YansWifiPhyHelper phy;
    YansWifiChannelHelper channel;
    channel.SetPropagationDelay("ns3::ConstantSpeedPropagationDelayModel");
    channel.AddPropagationLoss("ns3::FixedRssLossModel", "Rss", DoubleValue(-50)); // dBm, the same for every pair
    phy.SetChannel(channel.Create());
    phy.DisablePreambleDetectionModel();
    if (o.decodeHeaders)
    {
        phy.SetErrorRateModel("HeadersSurvive");
    }

    WifiHelper wifi;
    wifi.SetStandard(WIFI_STANDARD_80211a);
    wifi.SetRemoteStationManager("ns3::ConstantRateWifiManager",
                                 "DataMode", StringValue("OfdmRate12Mbps"),
                                 "ControlMode", StringValue("OfdmRate12Mbps"));
    WifiMacHelper mac;
    mac.SetType("ns3::AdhocWifiMac", "QosSupported", BooleanValue(false), "FrameRetryLimit", UintegerValue(65535));
    NetDeviceContainer devices = wifi.Install(phy, mac, nodes);
    for (uint32_t i = 0; i < devices.GetN(); ++i)
    {
        auto device = DynamicCast<WifiNetDevice>(devices.Get(i));
        device->GetPhy()->SetSlot(MicroSeconds(SLOT_US));
        device->GetPhy()->SetSifs(MicroSeconds(SIFS_US));
        device->GetMac()->GetTxop()->SetMinCw(o.cwMin); // only after Install: it sets the standard's own values
        device->GetMac()->GetTxop()->SetMaxCw(o.cwMax);
    }
    WifiHelper::AssignStreams(devices, 1);
    return devices;
}

void
InstallPositions(const NodeContainer& nodes)
{
    MobilityHelper mobility; // all at the origin: no propagation delay
    mobility.SetMobilityModel("ns3::ConstantPositionMobilityModel");
    mobility.Install(nodes);
}

// One packet a millisecond and station, more than the channel can carry in all: the queues never run empty.
void
InstallTraffic(const NodeContainer& nodes, const NetDeviceContainer& devices, Observer& observer)
{
    PacketSocketHelper sockets;
    sockets.Install(nodes);
    const uint32_t sink = nodes.GetN() - 1;
    PacketSocketAddress toSink;
    toSink.SetPhysicalAddress(devices.Get(sink)->GetAddress());
    toSink.SetProtocol(1);
    for (uint32_t i = 0; i < sink; ++i)
    {
        toSink.SetSingleDevice(devices.Get(i)->GetIfIndex());
        auto client = CreateObject<PacketSocketClient>();
        client->SetRemote(toSink);
        client->SetAttribute("PacketSize", UintegerValue(PAYLOAD_BYTES));
        client->SetAttribute("Interval", TimeValue(MilliSeconds(1)));
        client->SetAttribute("MaxPackets", UintegerValue(0)); // 0: no limit
        nodes.Get(i)->AddApplication(client);
    }
    auto server = CreateObject<PacketSocketServer>();
    toSink.SetSingleDevice(devices.Get(sink)->GetIfIndex());
    server->SetLocal(toSink);
    server->TraceConnectWithoutContext("Rx", MakeCallback(&Observer::Rx, &observer));
    nodes.Get(sink)->AddApplication(server);
}

template <typename Key>
std::string
Json(const std::map<Key, uint64_t>& histogram)
{
    std::ostringstream out;
    for (const auto& [key, count] : histogram)
    {
        out << (out.tellp() > 0 ? ", " : "{") << '"' << key << "\": " << count;
    }
    return histogram.empty() ? "{}" : out.str() + "}";
}

std::string
Json(const std::vector<uint64_t>& counts)
{
    std::ostringstream out;
    for (uint64_t count : counts)
    {
        out << (out.tellp() > 0 ? ", " : "[") << count;
    }
    return out.str() + "]";
}

void
Report(const Options& o, const Observer& seen, double cpuSeconds)
{
    uint64_t received = 0;
    for (uint64_t count : seen.received)
    {
        received += count;
    }
    std::ostringstream collisions; // undefined, hence null, when nothing was sent
    collisions.precision(12);
    seen.transmissions ? collisions << 1 - double(received) / seen.transmissions : collisions << "null";
    std::cout.precision(12);
    std::cout << "{\"throughput_ratio\": " << received * EXCHANGE_US / (o.measuredS * 1e6)
              << ", \"collision_probability\": " << collisions.str() << ", \"transmissions\": " << seen.transmissions
              << ", \"received\": " << received << ", \"received_per_station\": " << Json(seen.received)
              << ", \"measured_s\": " << o.measuredS << ", \"cpu_seconds\": " << cpuSeconds
              << ", \"slots\": " << uint64_t((o.warmupS + o.measuredS) * 1e6 / SLOT_US)
              << ", \"exchange_us\": " << Json(seen.exchangeUs) << ", \"resume_us\": {";
    const char* comma = "";
    for (const auto& [group, histogram] : seen.resumeUs)
    {
        std::cout << comma << '"' << group << "\": " << Json(histogram);
        comma = ", ";
    }
    std::cout << "}}" << std::endl;
}

} // namespace

int
main(int argc, char** argv)
{
    const Options options = ParseOptions(argc, argv);
    if (const std::string complaint = Complaint(options); !complaint.empty())
    {
        std::cerr << "dcf_ns3: " << complaint << std::endl;
        return 2;
    }
    RngSeedManager::SetSeed(options.rngSeed);
    RngSeedManager::SetRun(options.rngRun);
    Config::SetDefault("ns3::WifiMacQueue::MaxSize", StringValue("10p"));
    Config::SetDefault("ns3::WifiMacQueue::MaxDelay", TimeValue(Hours(1))); // no packet is too old to be sent

    NodeContainer nodes;
    nodes.Create(options.nStations + 1); // the last one is the sink
    InstallPositions(nodes);
    const NetDeviceContainer devices = InstallWifi(nodes, options);
    Observer observer(options);
    for (uint32_t i = 0; i < options.nStations; ++i)
    {
        observer.Watch(i, DynamicCast<WifiNetDevice>(devices.Get(i)));
    }
    InstallTraffic(nodes, devices, observer);

    Simulator::Stop(Seconds(options.warmupS + options.measuredS));
    Simulator::Run();
    Report(options, observer, double(std::clock()) / CLOCKS_PER_SEC);
    Simulator::Destroy();
    return 0;
}
